//! Real handshakes over loopback.

mod files;
mod refused;
mod renewal;
mod served;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_stream::StreamExt;
use tower::Service;

use super::authority::new_key;
use super::{Authority, Connection, Credentials, Peer, Role, pem};
use crate::os::{Activity, Os, Stopwatch, Timestamp};
use crate::telemetry::{Metrics, Sampled};
use crate::types::Error;

const DAY: i64 = 86_400;

fn node(id: &str) -> Role {
    Role::Node(id.parse().unwrap())
}

fn now() -> i64 {
    Timestamp::now().seconds()
}

/// Everything logged by this test process.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Begins, once a process.
    fn begin() -> Self {
        static LOG: OnceLock<Log> = OnceLock::new();
        let log = LOG.get_or_init(|| {
            let log = Self::default();
            let writer = log.clone();
            tracing_subscriber::fmt()
                .with_ansi(false)
                .with_max_level(tracing::Level::DEBUG)
                .with_writer(move || writer.clone())
                .init();
            log
        });
        log.clone()
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// How many lines have all these words.
    fn lines(&self, words: &[&str]) -> usize {
        self.text().lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A certificate and key as an unknown program would have them.
#[derive(Clone)]
struct Held {
    certificate: String,
    key: String,
}

impl Held {
    /// With chosen names and dates.
    fn by(authority: &Authority, names: &[&str], from: i64, to: i64) -> Self {
        let key = new_key().unwrap();
        let certificate = authority.certify_names(names, &key, from, to).unwrap();
        Self { certificate, key: pem::encode(pem::PRIVATE_KEY, key.serialized_der()) }
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        pem::certificates(self.certificate.as_bytes()).unwrap()
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        pem::key(self.key.as_bytes()).unwrap()
    }

    fn write(&self, directory: &Path, ca: &str) {
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join("ca.crt"), ca).unwrap();
        fs::write(directory.join("tls.crt"), &self.certificate).unwrap();
        fs::write(directory.join("tls.key"), &self.key).unwrap();
    }
}

/// A CA, places for certificates, and what is counted.
struct Rig {
    log: Log,
    scratch: TempDir,
    authority: Authority,
    ca: String,
    metrics: Arc<Metrics>,
}

impl Rig {
    fn new() -> Self {
        let log = Log::begin();
        let (authority, _) = Authority::make().unwrap();
        let ca = authority.issue(&Role::Operator, 1).unwrap().ca;
        let metrics = Metrics::new(Activity::default());
        Self { log, scratch: tempfile::tempdir().unwrap(), authority, ca, metrics }
    }

    fn place(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// The directory with a fresh certificate for the role.
    fn issue(&self, role: &Role) -> PathBuf {
        let place = self.place(&role.to_string().replace(':', "-"));
        self.authority.issue(role, 30).unwrap().write(&Os::new(), &place).unwrap();
        place
    }

    fn load(&self, place: &Path, role: &Role) -> Result<Credentials, Error> {
        Credentials::from_files(Os::new(), place, role.clone(), self.metrics.tls().clone())
    }

    fn credentials(&self, role: &Role) -> Credentials {
        self.load(&self.issue(role), role).unwrap()
    }

    /// A sample's value, 0 when it is not there.
    fn count(&self, sample: &str) -> i64 {
        let text = self.metrics.text(Sampled::default()).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }

    fn refusals(&self, side: &str, reason: &str) -> i64 {
        self.count(&format!("holdfast_tls_handshakes_refused_total{{side=\"{side}\",reason=\"{reason}\"}}"))
    }

    /// Waits until so many were refused.
    async fn await_refusals(&self, side: &str, reason: &str, count: i64) {
        let begun = Stopwatch::start();
        while self.refusals(side, reason) < count {
            let text = self.metrics.text(Sampled::default()).unwrap();
            assert!(begun.elapsed() < Duration::from_secs(20), "{side} {reason} {count}\n{text}\n{}", self.log.text());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(self.refusals(side, reason), count);
    }
}

/// Accepts; sends each client its identity in one line, then echoes.
async fn echo(credentials: &Credentials) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut incoming = credentials.incoming(listener);
    tokio::spawn(async move {
        while let Some(connection) = incoming.next().await {
            let mut connection = connection.unwrap();
            tokio::spawn(async move {
                let greeting = format!("{}\n", connection.peer());
                connection.write_all(greeting.as_bytes()).await.ok();
                let mut bytes = [0; 64];
                while let Ok(read @ 1..) = connection.read(&mut bytes).await {
                    connection.write_all(&bytes[..read]).await.ok();
                }
            });
        }
    });
    address
}

async fn connect(credentials: &Credentials, role: &Role, address: SocketAddr) -> Result<Connection, Error> {
    let uri = format!("http://{address}").parse().unwrap();
    credentials.connector(role).call(uri).await.map(hyper_util::rt::TokioIo::into_inner)
}

/// Connects, and returns the identity that the server sends.
async fn greeted(
    credentials: &Credentials,
    role: &Role,
    address: SocketAddr,
) -> Result<(BufReader<Connection>, String), io::Error> {
    let mut stream = BufReader::new(connect(credentials, role, address).await.map_err(io::Error::other)?);
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((stream, line.trim_end().to_owned()))
}

async fn echoes(stream: &mut BufReader<Connection>) -> io::Result<()> {
    stream.get_mut().write_all(b"again").await?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await?;
    assert_eq!(&answer, b"again");
    Ok(())
}

/// A client written for the test, to servers of the CA; returns the server's certificate or the error.
async fn stranger(
    ca: &str,
    held: Option<&Held>,
    server: &Role,
    address: SocketAddr,
) -> io::Result<CertificateDer<'static>> {
    let mut roots = RootCertStore::empty();
    for der in pem::certificates(ca.as_bytes()).unwrap() {
        roots.add(der).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots);
    let mut config = match held {
        Some(held) => config.with_client_auth_cert(held.chain(), held.key()).unwrap(),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(server.name().to_string()).unwrap();
    let tcp = TcpStream::connect(address).await?;
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    // The server's decision about the client's certificate comes after the handshake.
    stream.read_u8().await?;
    Ok(stream.get_ref().1.peer_certificates().unwrap()[0].clone())
}
