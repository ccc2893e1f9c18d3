//! Which peers are accepted and which are refused, and the log lines and counts of refusals.

use rustls::ServerConfig;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::types::Kind;

#[tokio::test]
async fn both_sides_know_each_other_by_their_certificates() {
    let rig = Rig::new();
    for server in [node("b"), node("Host_7"), Role::Controller] {
        let address = echo(&rig.credentials(&server)).await;
        for client in [Role::Controller, node("c"), node("C"), Role::Operator] {
            let (mut stream, greeting) = greeted(&rig.credentials(&client), &server, address).await.unwrap();
            assert_eq!(greeting, client.name().as_str());
            assert_eq!(*stream.get_ref().peer(), Peer::Verified(server.name()));
            echoes(&mut stream).await.unwrap();
        }
    }
    assert_eq!(rig.log.lines(&["connection refused", rig.scratch.path().to_str().unwrap()]), 0);
}

#[tokio::test]
async fn clients_with_the_wrong_certificate_or_none_are_refused_named_and_counted() {
    let rig = Rig::new();
    let (server, foreign) = (node("b"), Authority::make().unwrap().0);
    let address = echo(&rig.credentials(&server)).await;
    let good = "controller.csi.holdfast.storage";
    let by = |names: &[&str], from, to| Some(Held::by(&rig.authority, names, now() + from, now() + to));
    let cases = [
        ("expired", by(&[good], -2 * DAY, -DAY), "expired on"),
        ("not_yet_valid", by(&[good], DAY, 2 * DAY), "not valid before"),
        ("unknown_authority", Some(Held::by(&foreign, &[good], now() - DAY, now() + DAY)), "no CA in our ca.crt"),
        ("no_certificate", None, "showed no certificate"),
        ("no_role", by(&["admin.csi.holdfast.storage"], -DAY, DAY), "exactly one role"),
    ];
    for (reason, held, why) in cases {
        let error = stranger(&rig.ca, held.as_ref(), &server, address).await.unwrap_err();
        assert!(error.to_string().contains("alert"), "{reason}: {error}");
        rig.await_refusals("server", reason, 1).await;
        let names = held.map_or("no certificate", |_| if reason == "no_role" { "admin.csi" } else { good });
        assert_eq!(
            rig.log.lines(&["WARN", "side=\"server\"", "127.0.0.1:", names, reason, why]),
            1,
            "{}",
            rig.log.text()
        );
    }
    for names in [&["*.node.csi.holdfast.storage"][..], &[], &[good, "b.node.csi.holdfast.storage"]] {
        stranger(&rig.ca, by(names, -DAY, DAY).as_ref(), &server, address).await.unwrap_err();
    }
    rig.await_refusals("server", "no_role", 4).await;
    stranger(&rig.ca, by(&[good], -DAY, DAY).as_ref(), &server, address).await.unwrap();
}

/// A server written for the test, which requests no certificate.
async fn impostor(held: &Held) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_no_client_auth().with_single_cert(held.chain(), held.key()).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            if let Ok(mut stream) = acceptor.accept(tcp).await {
                stream.write_all(b"welcome\n").await.ok();
            }
        }
    });
    address
}

#[tokio::test]
async fn servers_that_are_not_exactly_the_one_wanted_are_refused() {
    let rig = Rig::new();
    let (wanted, foreign) = (node("b"), Authority::make().unwrap().0);
    let client = rig.credentials(&Role::Controller);
    let good = "b.node.csi.holdfast.storage";
    let by = |names: &[&str], from, to| Held::by(&rig.authority, names, now() + from, now() + to);
    let cases = [
        ("expired", by(&[good], -2 * DAY, -DAY)),
        ("not_yet_valid", by(&[good], DAY, 2 * DAY)),
        ("unknown_authority", Held::by(&foreign, &[good], now() - DAY, now() + DAY)),
        ("wrong_role", by(&["c.node.csi.holdfast.storage"], -DAY, DAY)),
        // It matches by the rules of DNS names, but is not a role name.
        ("no_role", by(&["*.node.csi.holdfast.storage"], -DAY, DAY)),
    ];
    for (reason, held) in cases {
        let address = impostor(&held).await;
        let error = connect(&client, &wanted, address).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Denied, "{reason}: {error}");
        for word in [good, &address.to_string()] {
            assert!(error.to_string().contains(word), "{error}");
        }
        rig.await_refusals("client", reason, 1).await;
        assert_eq!(rig.log.lines(&["WARN", "side=\"client\"", reason, &address.to_string()]), 1);
    }
    let address = impostor(&by(&[good], -DAY, DAY)).await;
    assert_eq!(greeted(&client, &wanted, address).await.unwrap().1, "welcome");
    // Our own server of another node, as a controller with a stale address would reach it.
    let other = echo(&rig.credentials(&node("c"))).await;
    assert_eq!(connect(&client, &wanted, other).await.unwrap_err().kind(), Kind::Denied);
    rig.await_refusals("server", "refused_by_peer", 1).await;
}

#[tokio::test]
async fn who_is_refused_by_the_server_says_so_itself() {
    let rig = Rig::new();
    let theirs = Rig::new();
    let server = theirs.credentials(&node("b"));
    // The client trusts the server's CA; the server does not trust the client's.
    let place = rig.issue(&Role::Controller);
    fs::write(place.join("ca.crt"), format!("{}{}", rig.ca, theirs.ca)).unwrap();
    let client = rig.load(&place, &Role::Controller).unwrap();
    let address = echo(&server).await;
    greeted(&client, &node("b"), address).await.unwrap_err();
    rig.await_refusals("client", "refused_by_peer", 1).await;
    assert_eq!(rig.log.lines(&["WARN", "refused_by_peer", "b.node.csi", &address.to_string()]), 1);
    theirs.await_refusals("server", "unknown_authority", 1).await;
}

#[tokio::test]
async fn nobody_there_is_unavailable() {
    let rig = Rig::new();
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = connect(&rig.credentials(&Role::Controller), &node("b"), address).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    rig.await_refusals("client", "no_answer", 1).await;
}

/// A certificate by a CA of which only the issuer is in `ca.crt`: the chain of three, and the root.
fn by_an_intermediate(name: &str) -> (Held, String) {
    use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose};
    let ca = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    };
    let (root_key, middle_key, key) = (new_key().unwrap(), new_key().unwrap(), new_key().unwrap());
    let root = ca("root").self_signed(&root_key).unwrap();
    let middle = ca("middle").signed_by(&middle_key, &Issuer::new(ca("root"), root_key)).unwrap();
    let mut leaf = CertificateParams::new(vec![name.to_owned()]).unwrap();
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let leaf = leaf.signed_by(&key, &Issuer::new(ca("middle"), middle_key)).unwrap();
    let chain = [&leaf, &middle].map(|one| pem::encode(pem::CERTIFICATE, one.der())).concat();
    let held = Held { certificate: chain, key: pem::encode(pem::PRIVATE_KEY, key.serialized_der()) };
    (held, pem::encode(pem::CERTIFICATE, root.der()))
}

#[tokio::test]
async fn a_ca_between_is_not_believed_whatever_root_signed_it() {
    let rig = Rig::new();
    let (held, root) = by_an_intermediate("controller.csi.holdfast.storage");
    let place = rig.issue(&node("b"));
    fs::write(place.join("ca.crt"), format!("{}{root}", rig.ca)).unwrap();
    let server = rig.load(&place, &node("b")).unwrap();
    let address = echo(&server).await;
    stranger(&rig.ca, Some(&held), &node("b"), address).await.unwrap_err();
    rig.await_refusals("server", "unknown_authority", 1).await;
    assert_eq!(
        rig.log.lines(&["WARN", "unknown_authority", "put the CA that issued it there"]),
        1,
        "{}",
        rig.log.text()
    );
    // As a server too, and in its own files.
    let address = impostor(&held).await;
    let place = rig.issue(&Role::Operator);
    fs::write(place.join("ca.crt"), format!("{}{root}", rig.ca)).unwrap();
    let client = rig.load(&place, &Role::Operator).unwrap();
    assert_eq!(connect(&client, &Role::Controller, address).await.unwrap_err().kind(), Kind::Denied);
    rig.await_refusals("client", "unknown_authority", 1).await;
    let own = rig.place("own");
    held.write(&own, &root);
    let _ = rig.load(&own, &Role::Controller);
    assert!(rig.log.lines(&["tls.crt would not be accepted"]) >= 1, "{}", rig.log.text());
}

/// The first message of a client that knows TLS 1.2 and nothing later.
fn hello_of_tls_1_2() -> Vec<u8> {
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.push(0);
    // TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256; no compression.
    hello.extend([0, 2, 0xc0, 0x2b, 1, 0]);
    // Groups: P-256. Signatures: ECDSA with SHA-256. Points: uncompressed.
    let extensions = [0, 10, 0, 4, 0, 2, 0, 23, 0, 13, 0, 4, 0, 2, 4, 3, 0, 11, 0, 2, 1, 0];
    hello.extend([0, u8::try_from(extensions.len()).unwrap()]);
    hello.extend(extensions);
    let length = u8::try_from(hello.len()).unwrap();
    [&[22, 3, 1, 0, length + 4, 1, 0, 0, length][..], &hello].concat()
}

#[tokio::test]
async fn tls_1_2_and_plain_text_are_refused_on_a_tls_port() {
    let rig = Rig::new();
    let address = echo(&rig.credentials(&node("b"))).await;
    let mut old = TcpStream::connect(address).await.unwrap();
    old.write_all(&hello_of_tls_1_2()).await.unwrap();
    let mut answer = Vec::new();
    old.read_to_end(&mut answer).await.unwrap();
    // A fatal alert, protocol_version, and nothing else.
    assert_eq!((answer[0], &answer[5..]), (21, &[2, 70][..]), "{answer:?}");
    rig.await_refusals("server", "old_protocol", 1).await;

    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    plain.read_to_end(&mut Vec::new()).await.ok();
    rig.await_refusals("server", "not_tls", 1).await;
    assert_eq!(rig.log.lines(&["WARN", "not_tls", "127.0.0.1:"]), 1);

    drop(TcpStream::connect(address).await.unwrap());
    rig.await_refusals("server", "gone", 1).await;
    // The other way round: a plain-text server is refused.
    let address = echo(&Credentials::plain(rig.metrics.tls().clone())).await;
    connect(&rig.credentials(&Role::Controller), &node("b"), address).await.unwrap_err();
}

#[tokio::test]
async fn silent_clients_hold_nobody_up_and_are_dropped_in_time() {
    let rig = Rig::new();
    let server = rig.credentials(&node("b"));
    let address = echo(&server).await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let begun = Stopwatch::start();
    greeted(&rig.credentials(&Role::Controller), &node("b"), address).await.unwrap();
    // The oldest is ended, the youngest keeps its time.
    let mut byte = [0];
    let oldest = silent.first_mut().unwrap().read(&mut byte);
    assert!(matches!(tokio::time::timeout(Duration::from_secs(5), oldest).await, Ok(Ok(0) | Err(_))));
    let youngest = silent.last_mut().unwrap().read(&mut byte);
    tokio::time::timeout(Duration::from_millis(100), youngest).await.expect_err("it was dropped too early");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    rig.await_refusals("server", "timeout", 300).await;
    assert!(begun.elapsed() > Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(silent.pop().unwrap().read(&mut [0]).await.unwrap_or_default(), 0);
}

#[tokio::test]
async fn plain_text_verifies_nobody_and_warns() {
    let rig = Rig::new();
    let plain = Credentials::plain(rig.metrics.tls().clone());
    assert!(rig.log.lines(&["WARN", "plain text", "for tests only"]) >= 1);
    let address = echo(&plain).await;
    let (mut stream, greeting) = greeted(&plain, &node("b"), address).await.unwrap();
    assert_eq!((greeting.as_str(), stream.get_ref().peer()), ("an unverified peer", &Peer::Unverified));
    echoes(&mut stream).await.unwrap();
    assert_eq!(rig.count("holdfast_tls_connections{side=\"server\"}"), 1);
    drop(stream);
    assert_eq!(rig.count("holdfast_tls_connections{side=\"client\"}"), 0);
}
