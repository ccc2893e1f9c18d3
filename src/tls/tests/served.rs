//! With tonic: the service gets the peer's identity and decides.

#![expect(clippy::disallowed_methods, reason = "the service of this test answers with a code of its own")]

use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status};

use super::*;
use crate::csi::proto::identity_client::IdentityClient;
use crate::csi::proto::identity_server::{Identity, IdentityServer};
use crate::csi::proto::{GetPluginInfoRequest, GetPluginInfoResponse};
use crate::wire::CONNECTION_AGE;

struct ForControllers;

#[tonic::async_trait]
impl Identity for ForControllers {
    async fn get_plugin_info(
        &self,
        request: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        let allowed = Peer::of(request.extensions()).and_then(|peer| peer.require_controller("GetPluginInfo"));
        allowed.map_err(|error| Status::permission_denied(error.chain()))?;
        Ok(Response::new(GetPluginInfoResponse::default()))
    }
}

async fn serve(credentials: &Credentials) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder().max_connection_age(CONNECTION_AGE).add_service(IdentityServer::new(ForControllers));
    tokio::spawn(server.serve_with_incoming(credentials.incoming(listener)));
    address
}

fn channel(credentials: &Credentials, role: &Role, address: SocketAddr) -> Channel {
    Endpoint::try_from(format!("http://{address}")).unwrap().connect_with_connector_lazy(credentials.connector(role))
}

async fn ask(channel: Channel) -> Result<(), Status> {
    IdentityClient::new(channel).get_plugin_info(GetPluginInfoRequest {}).await.map(drop)
}

#[tokio::test]
async fn a_service_knows_who_asks_and_refuses_what_is_not_theirs() {
    let rig = Rig::new();
    let address = serve(&rig.credentials(&node("b"))).await;
    ask(channel(&rig.credentials(&Role::Controller), &node("b"), address)).await.unwrap();
    for other in [node("c"), node("b"), Role::Operator] {
        let status = ask(channel(&rig.credentials(&other), &node("b"), address)).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{other}");
        assert!(status.message().contains(other.name().as_str()), "{status}");
    }
    // Not reached at all: the wrong server, and a client that the server refuses.
    let status = ask(channel(&rig.credentials(&Role::Controller), &node("c"), address)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let plain = Credentials::plain(rig.metrics.tls().clone());
    ask(channel(&plain, &node("b"), address)).await.unwrap_err();
    let address = serve(&plain).await;
    ask(channel(&plain, &node("b"), address)).await.unwrap();
}

#[tokio::test]
async fn a_channel_finds_its_way_back_after_the_server_was_renewed_and_restarted() {
    let rig = Rig::new();
    let client = rig.credentials(&Role::Controller);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let begin = |listener| {
        let incoming = rig.credentials(&node("b")).incoming(listener);
        tokio::spawn(Server::builder().add_service(IdentityServer::new(ForControllers)).serve_with_incoming(incoming))
    };
    let (first, channel) = (begin(listener), channel(&client, &node("b"), address));
    ask(channel.clone()).await.unwrap();
    first.abort();
    first.await.unwrap_err();
    let second = begin(TcpListener::bind(address).await.unwrap());
    let begun = Stopwatch::start();
    while ask(channel.clone()).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    second.abort();
}
