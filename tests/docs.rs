//! The documentation against the code: parameters, flags, metrics and the tests that design.md names.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends where something is not as it should be")]
#![allow(clippy::disallowed_methods, reason = "the test runs the command itself")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::process::Command;

use holdfast::config::{ControllerConfig, File, Flags, NodeConfig, WireFlags};
use holdfast::os::Activity;
use holdfast::telemetry::{
    AttachmentFigures, ConnectionFigures, ExportFigures, HomeFigures, HomeState, Metrics, NetworkSample, PoolFigures,
    Reconnected, Sampled,
};
use holdfast::types::{ParameterRow, TABLE, VolumeParameters};

const OPERATIONS: &str = include_str!("../docs/operations.md");
const DESIGN: &str = include_str!("../docs/design.md");
const ALERTS: &str = include_str!("../charts/holdfast/files/alerts.yaml");
const DASHBOARD: &str = include_str!("../charts/holdfast/files/dashboard.json");

/// The cells of every table row below a heading, up to the next heading.
fn rows(text: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, section) = text.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    let rows: Vec<Vec<String>> = section.lines().filter(|line| line.starts_with('|')).map(cells).collect();
    rows.into_iter().skip(2).collect()
}

fn unquoted(cell: &str) -> String {
    cell.replace('`', "")
}

#[test]
fn the_table_of_parameters_is_the_code_s() {
    let documented: Vec<_> = rows(OPERATIONS, "Parameters of a StorageClass")
        .iter()
        .map(|row| [unquoted(&row[0]), unquoted(&row[1]), unquoted(&row[2]), row[3].clone()])
        .collect();
    let known: Vec<_> = TABLE
        .iter()
        .map(|row| [row.key.into(), row.values.replace('|', ", "), row.default.into(), row.meaning.into()])
        .collect();
    assert_eq!(documented, known);
}

#[test]
fn the_budget_of_ci_is_the_documented_one() {
    let testing = include_str!("../docs/testing.md");
    let documented: Vec<_> = rows(testing, "The time of CI")
        .iter()
        .take_while(|row| row[0] != "part")
        .map(|row| format!("{} {}", unquoted(&row[0]).replace("of it ", "  ").replace("beside others ", "  "), row[1]))
        .collect();
    let budget: Vec<_> =
        include_str!("../.ci/budget").lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
    assert_eq!(documented, budget);
    let seconds = |line: &String| line.split_once(' ').unwrap().1.parse::<u64>().unwrap();
    // Indented parts run beside others.
    let after_each_other = budget.iter().filter(|line| !line.starts_with(' '));
    assert!(after_each_other.map(seconds).sum::<u64>() <= 45 * 60);
}

/// The tests of two releases run the one whose messages are stored.
#[test]
fn the_release_before_has_its_messages_stored() {
    let script = include_str!("../scripts/release-before");
    let version = script.lines().find_map(|line| line.strip_prefix("VERSION=")).unwrap();
    let stored = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/wire");
    let released = std::fs::read_dir(stored).unwrap().map(|entry| entry.unwrap().file_name());
    let before = released.filter(|release| release != env!("CARGO_PKG_VERSION")).max().unwrap();
    assert_eq!(before, version);
}

/// The features that cargo resolves for a build without tests, with the flags of the Dockerfile.
#[test]
fn the_released_binary_has_no_test_infrastructure() {
    let build = include_str!("../Dockerfile").lines().find_map(|line| line.strip_prefix("RUN cargo build ")).unwrap();
    let flags = build.split(" && ").next().unwrap().split(' ').filter(|word| word.starts_with("--"));
    assert_eq!(flags.collect::<Vec<_>>(), ["--locked", "--profile", "--bin"]);
    let features = |edges: &str| {
        let mut tree = Command::new(env!("CARGO"));
        tree.args(["tree", "--locked", "--offline", "--depth", "0", "--format", "{f}", "--edges", edges]);
        let output = tree.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().next().map(str::to_owned)
    };
    assert_eq!(features("normal,build").as_deref(), Some(""));
    assert_eq!(features("normal,build,dev").as_deref(), Some("testing"), "what tests are built with");
}

#[test]
fn the_chart_installs_this_version() {
    let chart = include_str!("../charts/holdfast/Chart.yaml");
    assert!(chart.lines().any(|line| line == concat!("appVersion: ", env!("CARGO_PKG_VERSION"))), "{chart}");
}

/// `HOLDFAST_UPDATE=1` writes it instead.
#[test]
fn the_chart_s_schema_has_the_parameters_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/holdfast/values.schema.json");
    let written = fs::read_to_string(&path).unwrap();
    let mut schema: serde_json::Value = serde_json::from_str(&written).unwrap();
    let property = |row: &ParameterRow| {
        let mut property = BTreeMap::from([("description", row.meaning.into()), ("type", "string".into())]);
        // The value of a parameter is one word, several, or described by a sentence.
        if row.values.contains(' ') {
            property.insert("minLength", 1.into());
        } else {
            property.insert("enum", row.values.split('|').collect());
        }
        if !row.default.is_empty() {
            property.insert("default", row.default.into());
        }
        (row.key, property)
    };
    let properties: BTreeMap<&str, BTreeMap<&str, serde_json::Value>> = TABLE.iter().map(property).collect();
    schema["definitions"]["parameters"] = serde_json::json!({
        "additionalProperties": false,
        "description": "the parameters of a StorageClass (docs/operations.md)",
        "properties": properties,
        "type": "object",
    });
    let meant = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    if std::env::var_os("HOLDFAST_UPDATE").is_some() {
        fs::write(&path, meant).unwrap();
    } else {
        assert!(written == meant, "the schema is not of this table of parameters; make chart UPDATE=1 writes it");
    }
}

/// Every configuration file in what the chart renders (tests/chart), as its process would read it.
#[test]
fn the_configuration_files_of_the_chart_are_understood() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = (0, 0);
    for entry in fs::read_dir(root.join("tests/chart")).unwrap() {
        let path = entry.unwrap().path();
        if !path.to_string_lossy().ends_with(".golden.yaml") {
            continue;
        }
        let rendered = fs::read_to_string(&path).unwrap();
        for block in rendered.split("\n  holdfast.yaml: |\n").skip(1) {
            let lines = block.lines().map_while(|line| line.strip_prefix("    "));
            let text: String = lines.flat_map(|line| [line, "\n"]).collect();
            let file = File::parse(&path, &text).unwrap();
            // The values that are set by flags: a node's address, and the source of certificates if no file sets it.
            let wire = WireFlags { insecure_plain_text: !text.contains("tls:"), ..WireFlags::default() };
            let common = Flags { wire: wire.clone(), ..Flags::default() };
            let wire = WireFlags { listen: Some("10.0.0.1:9811".into()), ..wire };
            let flags = Flags { wire, ..Flags::default() };
            let name = |variable: &str| (variable == "NODE_NAME").then(|| "node-1".to_owned());
            if text.contains("controllers:") {
                NodeConfig::resolve(&flags, &file, name).unwrap();
                seen.0 += 1;
            } else {
                ControllerConfig::resolve(&common, &file, name).unwrap();
                seen.1 += 1;
            }
        }
    }
    assert!(seen.0 >= 5 && seen.1 >= 5, "{seen:?}");
}

#[test]
fn every_flag_is_in_the_table_and_no_other() {
    let help = Command::new(env!("CARGO_BIN_EXE_holdfast")).args(["standalone", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let flags: BTreeSet<_> =
        help.split_ascii_whitespace().filter(|word| word.starts_with("--") && *word != "--help").collect();
    let documented = rows(OPERATIONS, "Running it");
    let documented: BTreeSet<_> = documented.iter().map(|row| row[0].trim_matches('`')).collect();
    assert_eq!(documented, flags);
}

#[test]
fn every_flag_of_controller_and_node_is_in_their_table_and_no_other() {
    let documented = rows(OPERATIONS, "Several nodes");
    for command in ["controller", "node"] {
        let help = Command::new(env!("CARGO_BIN_EXE_holdfast")).args([command, "--help"]).output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        let flags: BTreeSet<_> = help
            .lines()
            .filter_map(|line| line.split_ascii_whitespace().find(|word| word.starts_with("--")))
            .filter(|word| *word != "--help")
            .collect();
        let of = documented.iter().filter(|row| row[1] == "both" || row[1] == command);
        let of: BTreeSet<_> = of.map(|row| row[0].trim_matches('`')).collect();
        assert_eq!(of, flags, "{command}");
    }
}

#[test]
fn the_configuration_file_in_the_text_is_one() {
    let (_, yaml) = OPERATIONS.split_once("```yaml\n").unwrap();
    let yaml = yaml.split("```").next().unwrap();
    let file = File::parse(Path::new("operations.md"), yaml).unwrap();
    let config = holdfast::config::Config::resolve(&Flags::default(), &file, |_| None).unwrap();
    assert_eq!(config.pools[0].limits, holdfast::home::SpaceLimits::default());
}

#[test]
fn every_metric_is_in_the_table_and_no_other() {
    let metrics = Metrics::new(Activity::default());
    metrics.call_began("Probe");
    metrics.call_ended("Probe", "OK", std::time::Duration::ZERO);
    let tls = metrics.tls();
    tls.expires("name", 0);
    tls.reloaded("renewed");
    tls.refused("server", "expired");
    tls.connected("server");
    metrics.enrol().ended("issued");
    metrics.kubelet().registered();
    let homes = metrics.homes();
    let heard = std::time::Duration::ZERO;
    homes.watch(move || vec![HomeFigures { node: "n".to_owned(), state: HomeState::Reachable, heard }]);
    homes.call_began("n");
    homes.crowded("n");
    homes.refused("Grant", "node");
    let pool = PoolFigures { inodes: Some(1), inodes_free: Some(1), ..PoolFigures::default() };
    let network = metrics.network();
    network.ended_detached();
    network.reconnected(Reconnected::Yes);
    network.watch_attachments(|| Some(AttachmentFigures::default()));
    let network =
        NetworkSample { exports: Some(ExportFigures::default()), connections: Some(ConnectionFigures::default()) };
    let text = metrics.text(Sampled { pools: Some(vec![pool]), network, ..Sampled::default() }).unwrap();
    let exported: BTreeSet<_> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let documented = rows(OPERATIONS, "Metrics");
    let documented: BTreeSet<_> = documented.iter().map(|row| row[0].trim_matches('`')).collect();
    assert_eq!(documented, exported);
    for (name, text) in [("alerts.yaml", ALERTS), ("dashboard.json", DASHBOARD)] {
        for used in text.split(|c: char| c != '_' && !c.is_ascii_alphanumeric()).filter(|w| w.starts_with("holdfast_"))
        {
            let plain = ["_total", "_bucket"].iter().find_map(|end| used.strip_suffix(end)).unwrap_or(used);
            assert!(exported.contains(plain), "{name} uses {used}, which is no metric");
        }
    }
}

#[test]
fn every_test_that_design_names_exists() {
    let mut known = BTreeSet::new();
    for place in ["src", "tests"] {
        collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join(place), &mut known);
    }
    let named = rows(DESIGN, "5. Promises");
    for row in &named {
        let tests: Vec<_> = row[2].split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "promise {} names no test", row[0]);
        for test in tests {
            assert!(known.contains(test), "promise {}: there is no test {test}", row[0]);
        }
    }
    assert_eq!(named.len(), 10);
}

/// Every function under a test attribute, and every shell script.
fn collect(place: &Path, known: &mut BTreeSet<String>) {
    for entry in fs::read_dir(place).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, known);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let mut test = false;
            for line in text.lines().map(str::trim) {
                if line.starts_with("#[") && line.contains("test") {
                    test = true;
                } else if let Some(rest) = line.trim_start_matches("async ").strip_prefix("fn ")
                    && std::mem::take(&mut test)
                {
                    known.insert(rest.split('(').next().unwrap().to_owned());
                }
            }
        } else {
            known.insert(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
}

/// The documents of a YAML file.
fn documents(path: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(path).unwrap();
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Each directory in examples/ is complete, and what it says to the driver is what the driver understands.
#[test]
fn the_examples_are_understood() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let examples: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!examples.is_empty());
    for example in examples {
        let readme = fs::read_to_string(example.join("README.md")).unwrap();
        assert!(readme.starts_with("# "), "{}", example.display());
        let (mut objects, mut seen) = (Vec::new(), 0);
        for entry in fs::read_dir(&example).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if name != "README.md" {
                assert!(name.ends_with(".yaml") && readme.contains(&name), "{}", path.display());
                objects.extend(documents(&path));
            }
        }
        let text = |object: &serde_json::Value, pointer: &str| {
            object.pointer(pointer).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned()
        };
        let of_kind = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
        let names = |kind| of_kind(kind).map(|object| text(object, "/metadata/name")).collect::<BTreeSet<_>>();
        for class in of_kind("StorageClass") {
            assert_eq!(text(class, "/provisioner"), holdfast::csi::DRIVER_NAME);
            let parameters: HashMap<String, String> = serde_json::from_value(class["parameters"].clone()).unwrap();
            VolumeParameters::parse(&parameters).unwrap();
            seen += 1;
        }
        for claim in of_kind("PersistentVolumeClaim") {
            assert!(names("StorageClass").contains(&text(claim, "/spec/storageClassName")), "{claim}");
            assert_eq!(claim["spec"]["accessModes"], serde_json::json!(["ReadWriteOnce"]));
        }
        for deployment in of_kind("Deployment") {
            // The new pod of a rolling update would wait for the volume of the old one.
            assert_eq!(text(deployment, "/spec/strategy/type"), "Recreate");
            let selector = &deployment["spec"]["selector"]["matchLabels"];
            assert_eq!(*selector, deployment["spec"]["template"]["metadata"]["labels"]);
            let pod = &deployment["spec"]["template"]["spec"];
            for volume in pod["volumes"].as_array().unwrap() {
                let claim = text(volume, "/persistentVolumeClaim/claimName");
                assert!(names("PersistentVolumeClaim").contains(&claim), "{claim}");
            }
        }
        assert!(seen > 0, "{} has no StorageClass", example.display());
    }
}
