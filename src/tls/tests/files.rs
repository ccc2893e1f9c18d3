//! The errors for unusable files, what the authority issues, and that no key is shown.

use rcgen::{CertificateParams, IsCa, SanType};

use super::*;
use crate::tls::certificate::Certificate;
use crate::types::{Kind, NodeId};

#[test]
fn each_fault_of_a_file_is_named_with_what_to_do() {
    let rig = Rig::new();
    let role = node("b");
    let name = role.name();
    let by = |name: &str, from, to| Held::by(&rig.authority, &[name], now() + from, now() + to);
    let good = by(name.as_str(), -DAY, DAY);
    let says = |what: &str, spoil: &dyn Fn(&Path), words: &[&str]| {
        let place = rig.place(what);
        good.write(&place, &rig.ca);
        spoil(&place);
        let error = rig.load(&place, &role).unwrap_err();
        assert_eq!(error.kind(), Kind::Precondition, "{what}: {error}");
        for word in words.iter().chain([&place.to_str().unwrap()]) {
            assert!(error.chain().contains(word), "{what}: {} has no {word}", error.chain());
        }
    };
    let write = |file: &'static str, text: &str| {
        let text = text.to_owned();
        move |place: &Path| fs::write(place.join(file), &text).unwrap()
    };
    for file in ["ca.crt", "tls.crt", "tls.key"] {
        says(
            &format!("no-{file}"),
            &|place| fs::remove_file(place.join(file)).unwrap(),
            &[file, "does not exist", "ca issue"],
        );
        says(&format!("bad-{file}"), &write(file, "nonsense"), &[file, "PEM"]);
    }
    says("foreign-key", &write("tls.key", &by(name.as_str(), -DAY, DAY).key), &["tls.key", "not the key of tls.crt"]);
    let held = |held: Held| {
        let ca = rig.ca.clone();
        move |place: &Path| held.write(place, &ca)
    };
    let today = super::super::certificate::date(now() - DAY);
    let issue = "holdfast ca issue --role node:b";
    says("expired", &held(by(name.as_str(), -2 * DAY, -DAY)), &["tls.crt", "expired on", &today[..10], issue]);
    says("early", &held(by(name.as_str(), DAY, 2 * DAY)), &["tls.crt", "not valid before", "clock"]);
    says("no-role", &held(by("x.csi.holdfast.storage", -DAY, DAY)), &["tls.crt", "exactly one role", "x.csi", issue]);
    says(
        "other",
        &held(by("c.node.csi.holdfast.storage", -DAY, DAY)),
        &["c.node.csi", "this process is b.node.csi", issue],
    );
    says(
        "a-file",
        &|place| {
            fs::remove_dir_all(place).unwrap();
            fs::write(place, "x").unwrap();
        },
        &[],
    );
}

#[test]
fn what_works_but_should_not_be_is_remarked() {
    let rig = Rig::new();
    let (role, place) = (node("b"), rig.place("open"));
    let held = Held::by(&rig.authority, &[role.name().as_str()], now() - DAY, now() + DAY);
    held.write(&place, &Authority::make().unwrap().0.issue(&role, 1).unwrap().ca);
    std::os::unix::fs::PermissionsExt::set_mode(&mut fs::metadata(place.join("tls.key")).unwrap().permissions(), 0o644);
    rig.load(&place, &role).unwrap();
    let place = place.to_str().unwrap();
    assert_eq!(rig.log.lines(&["WARN", place, "tls.key can be read by every user"]), 1, "{}", rig.log.text());
    assert_eq!(rig.log.lines(&["WARN", place, "would not be accepted by a peer that trusts the same ca.crt"]), 1);
}

fn read(certificate: &str) -> Certificate {
    Certificate::read(&pem::certificates(certificate.as_bytes()).unwrap()[0]).unwrap()
}

#[test]
fn a_node_is_certified_for_itself_whatever_it_asks() {
    let rig = Rig::new();
    let (key, b) = (new_key().unwrap(), "b".parse::<NodeId>().unwrap());
    let mut asked = CertificateParams::new(vec![Role::Controller.name().to_string()]).unwrap();
    asked.subject_alt_names.push(SanType::DnsName("c.node.csi.holdfast.storage".try_into().unwrap()));
    asked.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let request = asked.serialize_request(&key).unwrap();
    let text = pem::encode(pem::REQUEST, request.der());
    let (certificate, _) = rig.authority.sign(text.as_bytes(), &b, 30).unwrap();
    let facts = read(&certificate);
    assert_eq!(facts.role().unwrap(), Role::Node(b.clone()).name());
    assert_eq!(facts.shown(), "b.node.csi.holdfast.storage");
    assert!((29 * DAY..=30 * DAY).contains(&(facts.not_after - now())));
    let der = &pem::certificates(certificate.as_bytes()).unwrap()[0];
    let (_, parsed) = x509_parser::parse_x509_certificate(der).unwrap();
    assert!(!parsed.is_ca());

    // A byte of the request changed: another key in it, or anything else.
    for at in [request.der().len() / 2, request.der().len() - 5] {
        let mut der = request.der().to_vec();
        der[at] ^= 1;
        let text = pem::encode(pem::REQUEST, &der);
        let error = rig.authority.sign(text.as_bytes(), &b, 30).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
    }
    for text in ["", "nonsense", &rig.ca, &"x".repeat(70_000)] {
        assert_eq!(rig.authority.sign(text.as_bytes(), &b, 30).unwrap_err().kind(), Kind::InvalidArgument);
    }
    for days in [0, 826] {
        assert_eq!(rig.authority.issue(&Role::Operator, days).unwrap_err().kind(), Kind::OutOfRange);
    }
}

#[test]
fn a_ca_is_kept_whole_or_not_at_all_and_its_key_has_to_fit() {
    let rig = Rig::new();
    let (os, place) = (Os::new(), rig.place("ca"));
    let (made, new) = Authority::open_or_make(&os, &place).unwrap();
    let (again, second) = Authority::open_or_make(&os, &place).unwrap();
    assert!(new && !second);
    let role = node("b");
    let issued = again.issue(&role, 1).unwrap();
    assert_eq!(issued.ca, made.issue(&role, 1).unwrap().ca);
    // What the CA that was read back issues is good where the CA that was made is trusted.
    let at = rig.place("b");
    issued.write(&os, &at).unwrap();
    rig.load(&at, &role).unwrap();
    assert_eq!(rig.log.lines(&[at.to_str().unwrap(), "would not be accepted"]), 0);

    let error = issued.write(&os, &place).unwrap_err();
    assert!(error.to_string().contains("ca.key"), "{error}");
    fs::write(place.join("ca.key"), &issued.key).unwrap();
    assert!(Authority::open(&os, &place).unwrap_err().chain().contains("not the key"));
    fs::remove_file(place.join("ca.key")).unwrap();
    for result in [Authority::open(&os, &place), Authority::open_or_make(&os, &place).map(|(authority, _)| authority)] {
        assert!(result.unwrap_err().to_string().contains("no ca.key"));
    }
    assert!(place.join("ca.crt").exists());
}

#[test]
fn a_ca_that_has_expired_certifies_nobody_any_more() {
    let rig = Rig::new();
    let role = node("b");
    let (old, old_key) = Authority::make_for((now() - 2 * DAY, now() - DAY)).unwrap();
    let held = Held::by(&old, &[role.name().as_str()], now() - DAY, now() + DAY);
    let old_ca = old.issue(&role, 1).unwrap().ca;
    let place = rig.place("old");
    held.write(&place, &old_ca);
    let error = rig.load(&place, &role).unwrap_err();
    assert!(error.to_string().contains("every CA in it has expired"), "{error}");
    assert!(Authority::read(old_ca.as_bytes(), old_key.as_bytes()).unwrap_err().chain().contains("expired"));
    // Beside one that is good it is left out.
    held.write(&place, &format!("{old_ca}{}", rig.ca));
    rig.load(&place, &role).unwrap();
    let place = place.to_str().unwrap();
    assert_eq!(rig.log.lines(&["WARN", place, "is left out"]), 1);
    assert_eq!(rig.log.lines(&["WARN", place, "would not be accepted"]), 1);
    // No certificate lasts longer than the CA.
    let (short, _) = Authority::make_for((now() - DAY, now() + 2 * DAY)).unwrap();
    assert!(read(&short.issue(&role, 30).unwrap().certificate).not_after <= now() + 2 * DAY);
}

#[test]
fn no_key_is_seen_in_a_log_an_error_or_a_debug() {
    let rig = Rig::new();
    let role = node("b");
    let (authority, ca_key) = Authority::make().unwrap();
    let issued = authority.issue(&role, 1).unwrap();
    let place = rig.place("b");
    issued.write(&Os::new(), &place).unwrap();
    let credentials = rig.load(&place, &role).unwrap();
    let mut seen =
        format!("{credentials:?} {credentials:#?} {authority:?} {issued:?} {:?}", credentials.connector(&role));
    // A key file that is broken in its middle, cut, or has its begin on one line with the rest.
    let lines: Vec<&str> = issued.key.lines().collect();
    let spoilt = issued.key.replace(lines[1], &format!("{}!{}", &lines[1][..32], &lines[1][32..]));
    for broken in [lines.join(""), lines[..2].join("\n"), spoilt, lines[1..].join("\n")] {
        fs::write(place.join("tls.key"), &broken).unwrap();
        let error = rig.load(&place, &role).unwrap_err();
        seen += &format!("{error} {error:?} {}", error.chain());
        let error = Authority::read(rig.ca.as_bytes(), broken.as_bytes()).unwrap_err();
        seen += &format!("{error} {error:?} {}", error.chain());
    }
    seen += &rig.log.text();
    assert!(seen.contains("b.node.csi.holdfast.storage"));
    for key in [&issued.key, &ca_key] {
        for line in key.lines().filter(|line| !line.starts_with('-')) {
            for part in [&line[..16], &line[line.len() - 16..]] {
                assert!(!seen.contains(part), "a part of a key is in\n{seen}");
            }
        }
    }
    for der in [&issued.key, &ca_key].map(|key| pem::key(key.as_bytes()).unwrap()) {
        let secret = der.secret_der();
        let bytes = secret.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
        assert!(!seen.contains(&bytes[bytes.len() / 2..]));
    }
}
