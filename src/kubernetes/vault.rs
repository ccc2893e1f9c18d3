//! The CA in a Secret, and its certificate in the ConfigMap of the same name.

use std::collections::BTreeMap;

use async_trait::async_trait;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};

use super::client::ask;
use crate::enrol::rules::{CaText, Vault};
use crate::types::{Error, Kind, ObjectName, Result};

/// The keys in the Secret; the first one is in the ConfigMap as well. `holdfast ca` reads a directory with the same
/// names.
const CERTIFICATES: &str = "ca.crt";
const KEY: &str = "ca.key";

/// A Secret and a ConfigMap. The account needs these permissions: create secrets and configmaps; get this Secret; get
/// and update this ConfigMap.
#[derive(Clone)]
pub struct KubernetesVault {
    secrets: Api<Secret>,
    maps: Api<ConfigMap>,
    name: ObjectName,
}

impl std::fmt::Debug for KubernetesVault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubernetesVault").field("name", &self.name).finish_non_exhaustive()
    }
}

impl KubernetesVault {
    /// With these names.
    #[must_use]
    pub fn new(client: &Client, name: ObjectName) -> Self {
        let secrets = Api::namespaced(client.clone(), name.namespace());
        let maps = Api::namespaced(client.clone(), name.namespace());
        Self { secrets, maps, name }
    }

    fn metadata(&self) -> ObjectMeta {
        let labels = BTreeMap::from([("app.kubernetes.io/managed-by".to_owned(), "holdfast".to_owned())]);
        ObjectMeta { name: Some(self.name.name().to_owned()), labels: Some(labels), ..ObjectMeta::default() }
    }
}

#[async_trait]
impl Vault for KubernetesVault {
    async fn read(&self) -> Result<Option<CaText>> {
        let name = &self.name;
        let got = ask(&format!("get the Secret {name}"), self.secrets.get_opt(name.name())).await?;
        let Some(secret) = got else { return Ok(None) };
        let data = secret.data.unwrap_or_default();
        let text = |key: &str| {
            let bytes = data.get(key).map(|bytes| bytes.0.clone());
            bytes.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(|| {
                let why = format!(
                    "the Secret {name} contains no {key} in PEM; put {CERTIFICATES} and {KEY} of one CA there, or \
                     delete it"
                );
                Error::new(Kind::Precondition, why)
            })
        };
        Ok(Some(CaText { certificates: text(CERTIFICATES)?, key: text(KEY)? }))
    }

    async fn create(&self, ca: &CaText) -> Result<bool> {
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        let data =
            BTreeMap::from([(CERTIFICATES.to_owned(), bytes(&ca.certificates)), (KEY.to_owned(), bytes(&ca.key))]);
        let secret = Secret {
            metadata: self.metadata(),
            type_: Some("Opaque".to_owned()),
            data: Some(data),
            ..Secret::default()
        };
        let what = format!("create the Secret {}", self.name);
        match ask(&what, self.secrets.create(&PostParams::default(), &secret)).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == Kind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn publish(&self, certificates: &str) -> Result<bool> {
        let name = &self.name;
        let data = BTreeMap::from([(CERTIFICATES.to_owned(), certificates.to_owned())]);
        let got = ask(&format!("get the ConfigMap {name}"), self.maps.get_opt(name.name())).await?;
        let changed = match got {
            Some(map) if map.data.as_ref() == Some(&data) => return Ok(false),
            Some(map) => {
                // With the version that was read: a conflicting change makes the next check read it again.
                let map = ConfigMap { data: Some(data), binary_data: None, ..map };
                let what = format!("update the ConfigMap {name}");
                ask(&what, self.maps.replace(name.name(), &PostParams::default(), &map)).await
            }
            None => {
                let map = ConfigMap { metadata: self.metadata(), data: Some(data), ..ConfigMap::default() };
                let what = format!("create the ConfigMap {name}");
                ask(&what, self.maps.create(&PostParams::default(), &map)).await
            }
        };
        match changed {
            Ok(_) => Ok(true),
            // Another controller was first: it publishes the same, or the next check does.
            Err(error) if error.kind() == Kind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }
}
