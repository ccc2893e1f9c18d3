//! Certificates that change or expire while connections exist.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::os::{Call, Interceptor};
use crate::tls::certificate::Certificate;

/// When the certificate that a server shows now expires.
async fn shown(rig: &Rig, server: &Role, address: SocketAddr) -> i64 {
    let names = [Role::Operator.name()];
    let held = Held::by(&rig.authority, &[names[0].as_str()], now() - DAY, now() + DAY);
    let certificate = stranger(&rig.ca, Some(&held), server, address).await.unwrap();
    Certificate::read(&certificate).unwrap().not_after
}

#[tokio::test]
async fn a_renewed_certificate_serves_new_connections_and_old_ones_go_on() {
    let rig = Rig::new();
    let (server, client) = (node("b"), rig.credentials(&Role::Controller));
    let address = echo(&rig.credentials(&server)).await;
    let (mut old, _) = greeted(&client, &server, address).await.unwrap();
    let before = shown(&rig, &server, address).await;

    rig.authority.issue(&server, 60).unwrap().write(&Os::new(), &rig.place("node-b")).unwrap();
    let after = shown(&rig, &server, address).await;
    assert!(after > before + 29 * DAY, "{before} {after}");
    assert_eq!(rig.count("holdfast_tls_reloads_total{outcome=\"renewed\"}"), 1);
    assert_eq!(rig.count("holdfast_tls_certificate_expiry_seconds{name=\"b.node.csi.holdfast.storage\"}"), after);
    echoes(&mut old).await.unwrap();
    // The client's own is renewed as well.
    rig.issue(&Role::Controller);
    greeted(&client, &server, address).await.unwrap();
    assert_eq!(rig.count("holdfast_tls_reloads_total{outcome=\"renewed\"}"), 2);
}

#[tokio::test]
async fn links_swapped_as_kubelet_does_it_are_a_renewal() {
    let rig = Rig::new();
    let (server, place) = (node("b"), rig.place("mounted"));
    fs::create_dir(&place).unwrap();
    let put = |version: &str, days| {
        let issued = rig.authority.issue(&server, days).unwrap();
        issued.write(&Os::new(), &place.join(version)).unwrap();
        std::os::unix::fs::symlink(version, place.join("..data.tmp")).unwrap();
        fs::rename(place.join("..data.tmp"), place.join("..data")).unwrap();
    };
    put("..1", 30);
    for name in ["ca.crt", "tls.crt", "tls.key"] {
        std::os::unix::fs::symlink(format!("..data/{name}"), place.join(name)).unwrap();
    }
    let address = echo(&rig.load(&place, &server).unwrap()).await;
    let before = shown(&rig, &server, address).await;
    put("..2", 60);
    assert!(shown(&rig, &server, address).await > before + 29 * DAY);
}

#[tokio::test]
async fn a_broken_renewal_keeps_the_old_and_is_said_once() {
    let rig = Rig::new();
    let (server, place) = (node("b"), rig.place("node-b"));
    let address = echo(&rig.credentials(&server)).await;
    let before = shown(&rig, &server, address).await;
    let failed = "holdfast_tls_reloads_total{outcome=\"failed\"}";
    let crt = place.join("tls.crt");
    let other = rig.authority.issue(&server, 60).unwrap();
    let broken = [
        ("tls.crt", "nonsense", "tls.crt: it contains no certificate in PEM"),
        ("tls.crt", &other.certificate, "tls.key: it is not the key of tls.crt beside it"),
        ("ca.crt", "", "ca.crt: it contains no certificate in PEM"),
    ];
    let (good_ca, mut count) = (fs::read(place.join("ca.crt")).unwrap(), 0);
    for (name, text, why) in broken {
        fs::write(place.join(name), text).unwrap();
        count += 1;
        for _ in 0..3 {
            assert_eq!(shown(&rig, &server, address).await, before);
            assert_eq!(rig.count(failed), count, "{why}");
        }
        let said = ["ERROR", "the one before stays in use", why, place.to_str().unwrap()];
        assert_eq!(rig.log.lines(&said), 1, "{name} {}", rig.log.text());
    }
    fs::write(place.join("ca.crt"), good_ca).unwrap();
    fs::remove_file(&crt).unwrap();
    assert_eq!(shown(&rig, &server, address).await, before);
    assert_eq!(rig.count(failed), count + 1);
    rig.authority.issue(&server, 60).unwrap().write(&Os::new(), &place).unwrap();
    assert!(shown(&rig, &server, address).await > before + 29 * DAY);
    assert_eq!(rig.count(failed), count + 1);
}

#[tokio::test]
async fn a_renewal_whose_time_has_not_come_is_used_when_it_has() {
    let rig = Rig::new();
    let (server, place) = (node("b"), rig.place("node-b"));
    let address = echo(&rig.credentials(&server)).await;
    let before = shown(&rig, &server, address).await;
    let early = Held::by(&rig.authority, &[server.name().as_str()], now() + 9, now() + 60 * DAY);
    early.write(&place, &rig.ca);
    assert_eq!(shown(&rig, &server, address).await, before);
    tokio::time::sleep(Duration::from_secs(6)).await;
    // It was tried again, and a known reason is not logged again.
    assert_eq!(shown(&rig, &server, address).await, before);
    assert_eq!(rig.count("holdfast_tls_reloads_total{outcome=\"failed\"}"), 1);
    assert_eq!(rig.log.lines(&["ERROR", "not valid before", place.to_str().unwrap()]), 1);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(shown(&rig, &server, address).await > before);
}

#[tokio::test]
async fn a_ca_is_replaced_without_an_interruption() {
    let rig = Rig::new();
    let (new, _) = Authority::make().unwrap();
    let new_ca = new.issue(&Role::Operator, 1).unwrap().ca;
    let both = format!("{}{new_ca}", rig.ca);
    let (server, client) = (node("b"), Role::Controller);
    let (at_server, at_client) = (rig.issue(&server), rig.issue(&client));
    let (serving, calling) = (rig.load(&at_server, &server).unwrap(), rig.load(&at_client, &client).unwrap());
    let address = echo(&serving).await;
    let works = async || greeted(&calling, &server, address).await.map(drop);
    works().await.unwrap();
    // Both are trusted, one side after the other; then certificates of the new; then the new alone.
    for place in [&at_server, &at_client] {
        fs::write(place.join("ca.crt"), &both).unwrap();
        works().await.unwrap();
    }
    let old = Held::by(&rig.authority, &[client.name().as_str()], now() - DAY, now() + DAY);
    for (place, role) in [(&at_client, &client), (&at_server, &server)] {
        Held::by(&new, &[role.name().as_str()], now() - DAY, now() + DAY).write(place, &both);
        works().await.unwrap();
    }
    stranger(&new_ca, Some(&old), &server, address).await.unwrap();
    for place in [&at_server, &at_client] {
        fs::write(place.join("ca.crt"), &new_ca).unwrap();
        works().await.unwrap();
    }
    stranger(&new_ca, Some(&old), &server, address).await.unwrap_err();
    rig.await_refusals("server", "unknown_authority", 1).await;
    assert_eq!(rig.count("holdfast_tls_reloads_total{outcome=\"failed\"}"), 0);
}

#[tokio::test]
async fn a_connection_ends_with_the_certificate_it_was_made_with() {
    let rig = Rig::new();
    let (server, client) = (node("b"), Role::Controller);
    let address = echo(&rig.credentials(&server)).await;
    let place = rig.place("short");
    Held::by(&rig.authority, &[client.name().as_str()], now() - DAY, now() + 3).write(&place, &rig.ca);
    let calling = rig.load(&place, &client).unwrap();
    let (mut stream, _) = greeted(&calling, &server, address).await.unwrap();
    echoes(&mut stream).await.unwrap();
    let mut byte = [0];
    let ended = tokio::time::timeout(Duration::from_secs(15), stream.read(&mut byte)).await.expect("it has to end");
    assert!(!matches!(ended, Ok(1..)));
    assert_eq!(rig.count("holdfast_tls_connections{side=\"server\"}"), 0);
    greeted(&calling, &server, address).await.unwrap_err();
    rig.await_refusals("server", "expired", 1).await;
    assert_eq!(rig.log.lines(&["ERROR", "controller.csi", "own certificate expired"]), 1);
}

/// Does something before each call on a file.
struct Before<F>(F);

impl<F: Fn(Call, &str) + Send + Sync> Interceptor for Before<F> {
    fn before(&self, call: Call, target: &str) -> io::Result<()> {
        (self.0)(call, target);
        Ok(())
    }

    fn after(&self, _: Call, _: &str) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn files_on_a_disk_that_hangs_cost_one_handshake_two_seconds() {
    let rig = Rig::new();
    let (server, place) = (node("b"), rig.issue(&node("b")));
    let hung = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&hung);
    let os = Os::intercepted(Box::new(Before(move |_, _: &str| {
        let begun = Stopwatch::start();
        while seen.load(Ordering::SeqCst) && begun.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(10));
        }
    })));
    let credentials = Credentials::from_files(os, &place, server.clone(), rig.metrics.tls().clone()).unwrap();
    let address = echo(&credentials).await;
    hung.store(true, Ordering::SeqCst);
    let times = async |from: u64, to: u64| {
        let begun = Stopwatch::start();
        shown(&rig, &server, address).await;
        let taken = begun.elapsed();
        assert!((Duration::from_secs(from)..Duration::from_secs(to)).contains(&taken), "{taken:?}");
    };
    times(2, 6).await;
    times(0, 2).await;
    let before = shown(&rig, &server, address).await;
    rig.authority.issue(&server, 60).unwrap().write(&Os::new(), &place).unwrap();
    hung.store(false, Ordering::SeqCst);
    // The check that hung ends, and the next one sees the change.
    let begun = Stopwatch::start();
    while shown(&rig, &server, address).await == before {
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn files_replaced_while_they_are_read_are_read_again() {
    let rig = Rig::new();
    let (server, place) = (node("b"), rig.issue(&node("b")));
    let (next, at) = (rig.authority.issue(&server, 60).unwrap(), place.clone());
    let done = AtomicBool::new(false);
    let os = Os::intercepted(Box::new(Before(move |call, target: &str| {
        if call == Call::Read && target.ends_with("tls.key") && !done.swap(true, Ordering::SeqCst) {
            next.write(&Os::new(), &at).unwrap();
        }
    })));
    Credentials::from_files(os, &place, server, rig.metrics.tls().clone()).unwrap();
    let expiry = rig.count("holdfast_tls_certificate_expiry_seconds{name=\"b.node.csi.holdfast.storage\"}");
    assert!(expiry > now() + 59 * DAY);
}
