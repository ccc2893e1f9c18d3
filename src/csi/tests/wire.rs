//! proto/csi/v1/csi.proto is our own text; proto/csi/v1/wire.txt lists the wire format of the published interface.

use std::fmt::Write as _;

use prost_reflect::{
    Cardinality, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, ServiceDescriptor,
};

use super::descriptors;

fn marks(options: &DynamicMessage, names: &[(&str, &str)]) -> String {
    let pool = descriptors();
    let set = |name: &str| {
        let extension = pool.get_extension_by_name(&format!("csi.v1.{name}")).unwrap();
        options
            .extensions()
            .any(|(one, value)| one.full_name() == extension.full_name() && value.as_bool() == Some(true))
    };
    names.iter().filter(|(name, _)| set(name)).fold(String::new(), |text, (_, mark)| text + " [" + mark + "]")
}

fn relative(name: &str) -> &str {
    name.strip_prefix("csi.v1.").unwrap_or(name)
}

fn type_name(kind: &Kind) -> String {
    match kind {
        Kind::Message(message) => relative(message.full_name()).to_owned(),
        Kind::Enum(one) => relative(one.full_name()).to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    }
}

fn field(out: &mut String, indent: &str, field: &FieldDescriptor) {
    let mut kind = type_name(&field.kind());
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else { panic!("a map is a message") };
        let side = |number| type_name(&entry.get_field(number).unwrap().kind());
        kind = format!("map<{}, {}>", side(1), side(2));
    } else if field.cardinality() == Cardinality::Repeated {
        kind = format!("repeated {kind}");
    }
    let oneof = field.containing_oneof().map_or_else(String::new, |oneof| format!(" (oneof {})", oneof.name()));
    let marks = marks(&field.options(), &[("alpha_field", "alpha"), ("csi_secret", "csi_secret")]);
    writeln!(out, "{indent}{} {}: {kind}{oneof}{marks}", field.number(), field.name()).unwrap();
}

fn reserved(out: &mut String, indent: &str, ranges: impl Iterator<Item = (i64, i64)>) {
    for (first, last) in ranges {
        writeln!(out, "{indent}reserved {first}..{last}").unwrap();
    }
}

fn enumeration(out: &mut String, indent: &str, one: &EnumDescriptor) {
    writeln!(out, "{indent}enum {}{}", one.name(), marks(&one.options(), &[("alpha_enum", "alpha")])).unwrap();
    let inner = format!("{indent}  ");
    for value in one.values() {
        let alpha = marks(&value.options(), &[("alpha_enum_value", "alpha")]);
        writeln!(out, "{inner}{} = {}{alpha}", value.name(), value.number()).unwrap();
    }
    reserved(out, &inner, one.reserved_ranges().map(|range| (i64::from(*range.start()), i64::from(*range.end()))));
}

fn message(out: &mut String, indent: &str, one: &MessageDescriptor) {
    writeln!(out, "{indent}message {}{}", one.name(), marks(&one.options(), &[("alpha_message", "alpha")])).unwrap();
    let inner = format!("{indent}  ");
    for each in one.fields() {
        field(out, &inner, &each);
    }
    for nested in one.child_messages().filter(|nested| !nested.is_map_entry()) {
        message(out, &inner, &nested);
    }
    for nested in one.child_enums() {
        enumeration(out, &inner, &nested);
    }
    reserved(out, &inner, one.reserved_ranges().map(|range| (i64::from(range.start), i64::from(range.end) - 1)));
}

fn service(out: &mut String, one: &ServiceDescriptor) {
    writeln!(out, "service {}{}", one.name(), marks(&one.options(), &[("alpha_service", "alpha")])).unwrap();
    for method in one.methods() {
        let stream = |streaming: bool| if streaming { "stream " } else { "" };
        writeln!(
            out,
            "  rpc {}({}{}) -> {}{}{}",
            method.name(),
            stream(method.is_client_streaming()),
            method.input().name(),
            stream(method.is_server_streaming()),
            method.output().name(),
            marks(&method.options(), &[("alpha_method", "alpha")])
        )
        .unwrap();
    }
}

/// The blocks of a list, each beginning at the left edge, in one order.
fn blocks(text: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        match blocks.last_mut() {
            Some(block) if line.starts_with(' ') => *block = format!("{block}\n{line}"),
            _ => blocks.push(line.to_owned()),
        }
    }
    blocks.sort();
    blocks
}

#[test]
fn the_interface_is_the_published_one() {
    let pool = descriptors();
    let file = pool.files().find(|file| file.package_name() == "csi.v1").unwrap();
    let mut ours = String::new();
    for extension in file.extensions() {
        let (on, name) = (extension.containing_message(), extension.name().to_owned());
        let kind = type_name(&extension.kind());
        writeln!(ours, "extend .{}: {name} = {} ({kind})", on.full_name(), extension.number()).unwrap();
    }
    file.services().for_each(|one| service(&mut ours, &one));
    file.enums().for_each(|one| enumeration(&mut ours, "", &one));
    file.messages().for_each(|one| message(&mut ours, "", &one));
    let published = blocks(include_str!("../../../proto/csi/v1/wire.txt"));
    for (ours, published) in blocks(&ours).iter().zip(&published) {
        assert_eq!(ours, published);
    }
    assert_eq!(blocks(&ours).len(), published.len());
}
