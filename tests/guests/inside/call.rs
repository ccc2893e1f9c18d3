//! One gRPC call to a daemon in the guest. The host encodes the request and decodes the answer; here they are bytes.

#![expect(clippy::disallowed_methods, reason = "an answer of the driver is carried from a guest to the test")]

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::bytes::{Buf, BufMut};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Endpoint;
use tonic::{Request, Status};

/// The environment variable with the call: socket, path, seconds, and the request in base64.
pub(crate) const CALL: &str = "HOLDFAST_CALL";

#[derive(Clone, Copy, Debug, Default)]
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut bytes = vec![0; from.remaining()];
        from.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }
}

/// The daemon may be starting: an error before the connection is retried until the time is over.
async fn call(socket: &str, path: &str, limit: Duration, message: Vec<u8>) -> Result<Vec<u8>, Status> {
    let endpoint = Endpoint::from_shared(format!("unix://{socket}")).unwrap().timeout(limit);
    let connected = async {
        loop {
            match endpoint.connect().await {
                Ok(channel) => return channel,
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    };
    let connected = tokio::time::timeout(limit, connected).await;
    let channel = connected.map_err(|_| Status::unavailable(format!("nothing listens on {socket}")))?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    client.unary(Request::new(message), path.parse().unwrap(), Bytes).await.map(tonic::Response::into_inner)
}

#[test]
#[ignore = "in a guest: make guests"]
fn call_once() {
    let text = std::env::var(CALL).unwrap();
    let words: Vec<_> = text.split_whitespace().collect();
    let message = STANDARD.decode(words.get(3).unwrap_or(&"")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limit = Duration::from_secs(words[2].parse().unwrap());
    match runtime.block_on(call(words[0], words[1], limit, message)) {
        Ok(answer) => println!("\n=> ok {}", STANDARD.encode(answer)),
        Err(status) => {
            println!("\n=> status {} {}", i32::from(status.code()), STANDARD.encode(status.message()));
        }
    }
}
