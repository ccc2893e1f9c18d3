//! The CA and tokens, against a server that speaks the API's HTTP.

use kube::{Client, Config};
use serde_json::json;

use super::client::client;
use super::double::{ApiServer, TOKEN};
use super::{KubernetesTokens, KubernetesVault};
use crate::enrol::rules::{CaText, NODE_CLAIM, Tokens, Vault};
use crate::types::{Kind, ObjectName};

fn to(server: &ApiServer) -> Client {
    let mut config = Config::new(server.url().parse().unwrap());
    config.auth_info.token = Some(TOKEN.to_owned().into());
    client(config).unwrap()
}

fn name() -> ObjectName {
    "ns/holdfast-ca".parse().unwrap()
}

fn ca(text: &str) -> CaText {
    CaText { certificates: format!("cert {text}"), key: format!("key {text}") }
}

#[tokio::test]
async fn a_ca_is_put_there_once_and_published_as_often_as_it_changes() {
    let server = ApiServer::start();
    let vault = KubernetesVault::new(&to(&server), name());
    assert_eq!(vault.read().await.unwrap(), None);
    assert!(vault.create(&ca("1")).await.unwrap());
    assert!(!vault.create(&ca("2")).await.unwrap());
    assert_eq!(vault.read().await.unwrap(), Some(ca("1")));

    let published = || server.object("configmaps/ns/holdfast-ca").map(|map| map["data"].clone());
    assert_eq!(published(), None);
    assert!(vault.publish("cert 1").await.unwrap());
    assert!(!vault.publish("cert 1").await.unwrap());
    assert!(vault.publish("cert 2").await.unwrap());
    // Exactly the certificate: other keys are removed.
    assert_eq!(published(), Some(json!({"ca.crt": "cert 2"})));
    server.put("configmaps/ns/holdfast-ca", &json!({"ca.crt": "cert 2", "more": "x"}));
    assert!(vault.publish("cert 2").await.unwrap());
    assert_eq!(published(), Some(json!({"ca.crt": "cert 2"})));

    server.put("secrets/ns/holdfast-ca", &json!({"ca.crt": "eA=="}));
    let error = vault.read().await.unwrap_err();
    assert!(error.kind() == Kind::Precondition && error.to_string().contains("ca.key"), "{error}");
}

#[tokio::test]
async fn what_is_said_of_a_token_is_what_the_api_server_says() {
    let server = ApiServer::start();
    let tokens = KubernetesTokens::new(&to(&server));
    let unknown = tokens.review("unknown", "holdfast").await.unwrap();
    assert!(!unknown.authenticated && !unknown.error.is_empty());
    server.know("good", "system:serviceaccount:ns:node", &["holdfast", "other"], Some("node-1"));
    let good = tokens.review("good", "holdfast").await.unwrap();
    assert!(good.authenticated && good.audiences == ["holdfast"] && good.account == "system:serviceaccount:ns:node");
    assert_eq!(good.claims[NODE_CLAIM], ["node-1"]);
    assert!(!tokens.review("good", "third").await.unwrap().authenticated);
    server.answer_with(Some((403, json!({"message": "no", "code": 403, "status": "Failure"}).to_string())));
    let error = tokens.review("good", "holdfast").await.unwrap_err();
    assert!(error.kind() == Kind::Denied && !error.chain().contains("good"), "{}", error.chain());
}
