//! The socket of a daemon, as a TCP port for the other guest.

use std::io;

use tokio::net::{TcpListener, TcpStream, UnixStream};

/// The environment variable with the address to listen on and the socket.
pub(crate) const FORWARD: &str = "HOLDFAST_FORWARD";

async fn carry(mut client: TcpStream, socket: String) -> io::Result<()> {
    let mut daemon = UnixStream::connect(socket).await?;
    tokio::io::copy_bidirectional(&mut client, &mut daemon).await.map(drop)
}

#[test]
#[ignore = "in a guest: make guests"]
fn forward() {
    let text = std::env::var(FORWARD).unwrap();
    let (address, socket) = text.split_once(' ').unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await.unwrap();
        loop {
            let (client, _) = listener.accept().await.unwrap();
            tokio::spawn(carry(client, socket.to_owned()));
        }
    });
}
