//! Reviews tokens with TokenReview.

use async_trait::async_trait;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};

use super::client::ask;
use crate::enrol::rules::{Review, Tokens};
use crate::types::Result;

/// Uses the API server. The account needs the permission to create tokenreviews.
#[derive(Clone)]
pub struct KubernetesTokens(Api<TokenReview>);

impl std::fmt::Debug for KubernetesTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("KubernetesTokens").finish()
    }
}

impl KubernetesTokens {
    /// With this client.
    #[must_use]
    pub fn new(client: &Client) -> Self {
        Self(Api::all(client.clone()))
    }
}

#[async_trait]
impl Tokens for KubernetesTokens {
    async fn review(&self, token: &str, audience: &str) -> Result<Review> {
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![audience.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = ask("create a TokenReview", self.0.create(&PostParams::default(), &review)).await?;
        let status = answer.status.unwrap_or_default();
        let user = status.user.unwrap_or_default();
        Ok(Review {
            authenticated: status.authenticated == Some(true),
            error: status.error.unwrap_or_default(),
            audiences: status.audiences.unwrap_or_default(),
            account: user.username.unwrap_or_default(),
            claims: user.extra.unwrap_or_default(),
        })
    }
}
