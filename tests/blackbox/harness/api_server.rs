//! The few paths of the Kubernetes API that Holdfast uses, over real HTTP: Secrets, ConfigMaps,
//! TokenReviews, PersistentVolumes, Pods and Events.

#![allow(dead_code, reason = "unit tests and black-box tests each use a part of it")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

/// The bearer token that this server accepts.
pub(crate) const TOKEN: &str = "controllers-own-token";

/// One server; gone when dropped.
pub(crate) struct ApiServer {
    address: SocketAddr,
    shared: Shared,
    // Dropped in the background: this may happen inside another runtime.
    runtime: Option<Runtime>,
}

type Shared = Arc<Mutex<Kept>>;

#[derive(Default)]
struct Kept {
    /// By `KIND/NAMESPACE/NAME`.
    objects: BTreeMap<String, Value>,
    /// TokenReview's status by token.
    tokens: BTreeMap<String, Value>,
    /// Every request, `METHOD PATH`.
    asked: Vec<String>,
    override_answer: Option<(u16, String)>,
    delay: Duration,
    version: u64,
}

fn kept(shared: &Shared) -> MutexGuard<'_, Kept> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn status(code: StatusCode, reason: &str, message: &str) -> Response {
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": code.as_u16()});
    (code, [("content-type", "application/json")], body.to_string()).into_response()
}

fn object(code: StatusCode, value: &Value) -> Response {
    (code, [("content-type", "application/json")], value.to_string()).into_response()
}

impl ApiServer {
    pub(crate) fn start() -> Self {
        let shared = Shared::default();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/api/v1/namespaces/{namespace}/{kind}", post(create).get(list))
            .route("/api/v1/persistentvolumes", get(list_volumes))
            .route("/api/v1/namespaces/{namespace}/{kind}/{name}", get(read).put(replace))
            .route("/apis/authentication.k8s.io/v1/tokenreviews", post(review))
            .layer(axum::middleware::from_fn_with_state(Arc::clone(&shared), before))
            .with_state(Arc::clone(&shared));
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
        Self { address, shared, runtime: Some(runtime) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A client configuration for this server.
    pub(crate) fn kubeconfig(&self) -> String {
        let cluster = json!({"name": "test", "cluster": {"server": self.url()}});
        let user = json!({"name": "test", "user": {"token": TOKEN}});
        let context = json!({"name": "test", "context": {"cluster": "test", "user": "test"}});
        json!({"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "users": [user], "contexts": [context],
            "current-context": "test"})
        .to_string()
    }

    /// An object, `KIND/NAMESPACE/NAME`.
    pub(crate) fn object(&self, key: &str) -> Option<Value> {
        kept(&self.shared).objects.get(key).cloned()
    }

    /// Another client writes this data into an object, `KIND/NAMESPACE/NAME`.
    pub(crate) fn put(&self, key: &str, data: &Value) {
        let mut kept = kept(&self.shared);
        kept.version += 1;
        let mut parts = key.split('/').skip(1);
        let (namespace, name) = (parts.next().unwrap(), parts.next().unwrap());
        let metadata = json!({"namespace": namespace, "name": name, "resourceVersion": kept.version.to_string()});
        kept.objects.insert(key.to_owned(), json!({"metadata": metadata, "data": data}));
    }

    /// Another client writes an object, `KIND/NAMESPACE/NAME`, as it is.
    pub(crate) fn set(&self, key: &str, value: &Value) {
        kept(&self.shared).objects.insert(key.to_owned(), value.clone());
    }

    /// The objects whose key begins so.
    pub(crate) fn all(&self, prefix: &str) -> Vec<Value> {
        of(&self.shared, prefix)
    }

    /// Another client deletes an object.
    pub(crate) fn remove(&self, key: &str) {
        kept(&self.shared).objects.remove(key);
    }

    /// Registers a token: its account, audiences, and the node of its pod.
    pub(crate) fn know(&self, token: &str, account: &str, audiences: &[&str], node: Option<&str>) {
        let mut user = json!({"username": account, "uid": "1", "groups": ["system:serviceaccounts"]});
        if let Some(node) = node {
            user["extra"] = json!({"authentication.kubernetes.io/node-name": [node]});
        }
        let status = json!({"authenticated": true, "user": user, "audiences": audiences});
        kept(&self.shared).tokens.insert(token.to_owned(), status);
    }

    /// The number of requests, `METHOD PATH`.
    pub(crate) fn asked(&self, what: &str) -> usize {
        kept(&self.shared).asked.iter().filter(|asked| *asked == what).count()
    }

    /// Every request gets this answer, or with `None` the normal one again.
    pub(crate) fn answer_with(&self, answer: Option<(u16, String)>) {
        kept(&self.shared).override_answer = answer;
    }

    /// Every answer takes so long from now on.
    pub(crate) fn answer_after(&self, delay: Duration) {
        kept(&self.shared).delay = delay;
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn before(
    State(shared): State<Shared>,
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> Response {
    let own = request.headers().get("authorization").and_then(|value| value.to_str().ok())
        == Some(&format!("Bearer {TOKEN}"));
    let delay = kept(&shared).delay;
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    {
        let mut kept = kept(&shared);
        kept.asked.push(format!("{} {}", request.method(), request.uri().path()));
        if let Some((code, body)) = &kept.override_answer {
            let code = StatusCode::from_u16(*code).unwrap();
            return (code, [("content-type", "application/json")], body.clone()).into_response();
        }
    }
    if !own {
        return status(StatusCode::FORBIDDEN, "Forbidden", "this account may not do that");
    }
    next.run(request).await
}

async fn create(
    State(shared): State<Shared>,
    Path((namespace, kind)): Path<(String, String)>,
    body: Bytes,
) -> Response {
    let mut kept = kept(&shared);
    let mut value: Value = serde_json::from_slice(&body).unwrap();
    let name = value["metadata"]["name"].as_str().unwrap().to_owned();
    let key = format!("{kind}/{namespace}/{name}");
    if kept.objects.contains_key(&key) {
        return status(StatusCode::CONFLICT, "AlreadyExists", &format!("{kind} {name:?} already exists"));
    }
    if kind == "secrets"
        && let Some(Value::Object(plain)) = value.as_object_mut().unwrap().remove("stringData")
    {
        for (key, text) in plain {
            value["data"][key] = STANDARD.encode(text.as_str().unwrap()).into();
        }
    }
    kept.version += 1;
    value["metadata"]["namespace"] = namespace.into();
    value["metadata"]["resourceVersion"] = kept.version.to_string().into();
    kept.objects.insert(key, value.clone());
    object(StatusCode::CREATED, &value)
}

fn of(shared: &Shared, prefix: &str) -> Vec<Value> {
    let kept = kept(shared);
    kept.objects.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(_, value)| value.clone()).collect()
}

/// Without selectors: the client must look at what it gets.
async fn list(State(shared): State<Shared>, Path((namespace, kind)): Path<(String, String)>) -> Response {
    object(StatusCode::OK, &json!({"metadata": {}, "items": of(&shared, &format!("{kind}/{namespace}/"))}))
}

async fn list_volumes(State(shared): State<Shared>) -> Response {
    object(StatusCode::OK, &json!({"metadata": {}, "items": of(&shared, "persistentvolumes/")}))
}

async fn read(State(shared): State<Shared>, Path((namespace, kind, name)): Path<(String, String, String)>) -> Response {
    match kept(&shared).objects.get(&format!("{kind}/{namespace}/{name}")) {
        Some(value) => object(StatusCode::OK, value),
        None => status(StatusCode::NOT_FOUND, "NotFound", &format!("{kind} {name:?} not found")),
    }
}

async fn replace(
    State(shared): State<Shared>,
    Path((namespace, kind, name)): Path<(String, String, String)>,
    body: Bytes,
) -> Response {
    let mut kept = kept(&shared);
    let key = format!("{kind}/{namespace}/{name}");
    let Some(there) = kept.objects.get(&key) else {
        return status(StatusCode::NOT_FOUND, "NotFound", &format!("{kind} {name:?} not found"));
    };
    let mut value: Value = serde_json::from_slice(&body).unwrap();
    let version = &value["metadata"]["resourceVersion"];
    if !version.is_null() && *version != there["metadata"]["resourceVersion"] {
        return status(StatusCode::CONFLICT, "Conflict", "the object has been modified");
    }
    kept.version += 1;
    value["metadata"]["resourceVersion"] = kept.version.to_string().into();
    kept.objects.insert(key, value.clone());
    object(StatusCode::OK, &value)
}

async fn review(State(shared): State<Shared>, body: Bytes) -> Response {
    let mut value: Value = serde_json::from_slice(&body).unwrap();
    let token = value["spec"]["token"].as_str().unwrap_or_default().to_owned();
    let asked: Vec<String> = serde_json::from_value(value["spec"]["audiences"].clone()).unwrap_or_default();
    let unknown = || json!({"user": {}, "error": "[invalid bearer token, token lookup failed]"});
    let mut answer = match kept(&shared).tokens.get(&token) {
        // Like the API server: a token is valid if it has one of the requested audiences; the answer names those it
        // has.
        Some(known)
            if known["audiences"]
                .as_array()
                .is_some_and(|has| asked.iter().any(|one| has.contains(&one.as_str().into()))) =>
        {
            known.clone()
        }
        _ => unknown(),
    };
    if let Some(has) = answer["audiences"].as_array() {
        let both: Vec<_> =
            has.iter().filter(|one| asked.iter().any(|asked| **one == asked.as_str())).cloned().collect();
        answer["audiences"] = both.into();
    }
    value["status"] = answer;
    object(StatusCode::CREATED, &value)
}
