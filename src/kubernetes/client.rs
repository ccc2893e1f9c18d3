//! A client of the API server, and the meaning of its errors.

use std::future::Future;
use std::time::Duration;

use kube::config::KubeConfigOptions;
use kube::{Client, Config};

use crate::types::{Error, Kind, Result};

/// The longest time of one request.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// To connect, and then for each answer.
const STEP: Duration = Duration::from_secs(5);

/// A client with this process's account: that of `KUBECONFIG` if it is set; in a pod, the pod's; otherwise that of
/// `~/.kube/config`. Sends nothing yet. Needs a running tokio runtime; tokens in files are read again when they change.
///
/// # Errors
/// `Precondition` when there is no such configuration, or it cannot be used.
pub async fn connect() -> Result<Client> {
    let said = |variable| std::env::var_os(variable).is_some_and(|value| !value.is_empty());
    let wrong = |error: Box<dyn std::error::Error + Send + Sync>| {
        Error::new(
            Kind::Precondition,
            "no configuration for the Kubernetes API server was found; run in a pod with a service account token, or \
             set KUBECONFIG",
        )
        .because(error)
    };
    let config = if said("KUBECONFIG") || !said("KUBERNETES_SERVICE_HOST") {
        Config::from_kubeconfig(&KubeConfigOptions::default()).await.map_err(|error| wrong(error.into()))?
    } else {
        Config::incluster().map_err(|error| wrong(error.into()))?
    };
    client(config)
}

/// A client with this configuration and our timeouts. Requests that the API server rejects for now (429, 503, 504) are
/// not repeated: the caller waits for the answer, or retries itself.
pub(super) fn client(mut config: Config) -> Result<Client> {
    config.default_retry = false;
    config.connect_timeout = Some(STEP);
    config.read_timeout = Some(STEP);
    config.write_timeout = Some(STEP);
    config.reset_reader_on_write = true;
    Client::try_from(config).map_err(|error| meaning("cannot create a client of the Kubernetes API server", error))
}

/// One request, limited by [`PATIENCE`]. `what` names the request, as in `get the Secret a/b`.
///
/// # Errors
/// `NotFound`, `AlreadyExists` (also for a conflicting change of another client), `Denied` when the account may not do
/// it, `InvalidArgument` when the API server finds the request invalid, `Unavailable` for everything else.
pub async fn ask<T>(what: &str, request: impl Future<Output = kube::Result<T>>) -> Result<T> {
    match tokio::time::timeout(PATIENCE, request).await {
        Ok(answer) => answer.map_err(|error| meaning(what, error)),
        Err(_) => {
            let message = format!("{what}: the API server did not answer within {} s", PATIENCE.as_secs());
            Err(Error::new(Kind::Unavailable, message))
        }
    }
}

fn meaning(what: &str, error: kube::Error) -> Error {
    match error {
        kube::Error::Api(status) => {
            let kind = match status.code {
                401 | 403 => Kind::Denied,
                404 => Kind::NotFound,
                409 => Kind::AlreadyExists,
                400 | 422 => Kind::InvalidArgument,
                _ => Kind::Unavailable,
            };
            let next = match kind {
                Kind::Denied => "; grant this permission to the service account of this process",
                _ => "",
            };
            Error::new(kind, format!("{what}: {} (HTTP {}){next}", status.message, status.code))
        }
        // The error's text may quote the content.
        kube::Error::SerdeError(_) => {
            Error::new(Kind::Unavailable, format!("{what}: the API server's answer is not a valid Kubernetes object"))
        }
        other => Error::new(Kind::Unavailable, format!("{what}: the API server does not answer")).because(other),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Secret;
    use kube::Api;
    use kube::api::PostParams;

    use super::super::double::{ApiServer, TOKEN};
    use super::*;

    fn to(server: &ApiServer, token: &str) -> Client {
        let mut config = Config::new(server.url().parse().unwrap());
        config.auth_info.token = Some(token.to_owned().into());
        client(config).unwrap()
    }

    #[tokio::test]
    async fn answers_have_the_meaning_they_have_for_us() {
        let server = ApiServer::start();
        let secrets = |token| Api::<Secret>::namespaced(to(&server, token), "ns");
        let kind = |result: Result<Secret>| result.unwrap_err().kind();
        let get = "get the Secret ns/a";
        assert_eq!(kind(ask(get, secrets(TOKEN).get("a")).await), Kind::NotFound);
        let made: Secret =
            serde_json::from_value(serde_json::json!({"metadata": {"name": "a"}, "stringData": {"x": "y"}})).unwrap();
        ask("create", secrets(TOKEN).create(&PostParams::default(), &made)).await.unwrap();
        assert_eq!(
            kind(ask("create", secrets(TOKEN).create(&PostParams::default(), &made)).await),
            Kind::AlreadyExists
        );
        ask(get, secrets(TOKEN).get("a")).await.unwrap();
        let denied = ask(get, secrets("another").get("a")).await.unwrap_err();
        assert_eq!(denied.kind(), Kind::Denied);
        assert!(denied.to_string().contains(get) && !denied.chain().contains("another"), "{}", denied.chain());
        server.answer_with(Some((500, "out of order".to_owned())));
        assert_eq!(kind(ask(get, secrets(TOKEN).get("a")).await), Kind::Unavailable);
        server.answer_with(Some((200, "{\"data\": {\"ca.key\": 4711}}".to_owned())));
        let odd = ask(get, secrets(TOKEN).get("a")).await.unwrap_err();
        assert!(odd.kind() == Kind::Unavailable && !odd.chain().contains("4711"), "{}", odd.chain());
        let client = to(&server, TOKEN);
        drop(server);
        let gone = ask(get, Api::<Secret>::namespaced(client, "ns").get("a")).await;
        assert_eq!(gone.unwrap_err().kind(), Kind::Unavailable);
    }

    #[tokio::test]
    async fn a_busy_api_server_is_asked_once() {
        let server = ApiServer::start();
        let busy =
            serde_json::json!({"message": "busy", "code": 429, "reason": "TooManyRequests", "status": "Failure"});
        server.answer_with(Some((429, busy.to_string())));
        let secrets = Api::<Secret>::namespaced(to(&server, TOKEN), "ns");
        let once = ask("get", secrets.get("a")).await.unwrap_err();
        assert!(once.kind() == Kind::Unavailable && once.to_string().contains("busy"), "{once}");
        assert_eq!(server.asked("GET /api/v1/namespaces/ns/secrets/a"), 1);
    }
}
