//! What the OpenAPI document says of a configuration that its types do not say by themselves.
//!
//! Schemas are derived from the types. Here are those of texts and of values that are written in
//! several ways, and what the reader of JSON takes beyond the types: [`complete_schema`].

use serde_json::{Map, Value, json};
use utoipa::openapi::schema::{
    AnyOfBuilder, Array, ArrayBuilder, KnownFormat, Object, ObjectBuilder, Schema, SchemaFormat,
    Type,
};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};

use super::device_nodes::{GuestNumaIds, MAX_DEVICE_NODES};
use super::{ConsoleMode, ImageType, MAX_NODE_ID, spelling_of};

/// Declares texts: types that are only there to have a schema.
macro_rules! texts {
    ($($(#[doc = $about:literal])+ $name:ident = $least:literal to $most:expr, $pattern:literal;)*) => {$(
        $(#[doc = $about])+
        #[derive(Debug)]
        pub enum $name {}

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let about = [$($about.trim()),+].join(" ");
                let most: Option<usize> = $most;
                let text = ObjectBuilder::new()
                    .schema_type(Type::String)
                    .description(Some(about))
                    .min_length(($least > 0).then_some($least))
                    .max_length(most)
                    .pattern(Some($pattern));
                text.into()
            }
        }

        impl ToSchema for $name {}
    )*};
}

// Lengths that are bytes elsewhere are characters here: no text within its limit is refused for
// more of them.
texts! {
    /// A path on the host; at most 4095 bytes.
    HostPath = 1 to Some(4095), r"^[^\u0000]*$";
    /// The path of a Unix socket on the host; at most 107 bytes.
    SocketPath = 1 to Some(107), r"^[^\u0000]*$";
    /// A kernel's command line.
    CommandLine = 0 to None, r"^[^\u0000]*$";
    /// A text for the guest's SMBIOS tables, without control characters; at most 4000 bytes.
    SmbiosText = 1 to Some(4000), r"^[^\u0000-\u001f\u007f-\u009f]*$";
    /// A UUID.
    Uuid = 36 to Some(36), "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$";
    /// The name of a device, without control characters. Names that begin with `_vfio`,
    /// `_disk`, `_net`, `_vsock` or two underscores are given to devices that come without.
    DeviceName = 1 to Some(256), r"^[^\u0000-\u001f\u007f-\u009f]*$";
    /// The name of a group of limits, without control characters.
    GroupName = 1 to Some(256), r"^[^\u0000-\u001f\u007f-\u009f]*$";
    /// The name of a network interface of the host; an empty one is none.
    InterfaceName = 0 to Some(15), r"^[!-$&-.0-9;-~]*$";
    /// An IP address, or a mask of one; an empty text is none.
    IpText = 0 to Some(45), "^[0-9a-fA-F:.]*$";
    /// A MAC address of one interface; an empty text is none.
    MacText = 0 to Some(17), "^([0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5})?$";
    /// A serial number, in printable ASCII.
    DiskSerial = 1 to Some(20), "^[ -~]*$";
}

impl PartialSchema for GuestNumaIds {
    fn schema() -> RefOr<Schema> {
        let node = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::UInt32)))
            .minimum(Some(0))
            .maximum(Some(MAX_NODE_ID));
        let list: Array = ArrayBuilder::new()
            .items(node)
            .min_items(Some(1))
            .max_items(Some(MAX_DEVICE_NODES))
            .description(Some("Nodes of `numa`, by their ids."))
            .build();
        let text: Object = ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some(
                r"^(auto(:[0-9]+)?|[0-9]+(-[0-9]+)?|\[[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*\])$",
            ))
            .description(Some(
                "As the command line has it: `[2-9]` are nodes of `numa`; `auto` and `auto:4` are 8 or as \
                 many as it says behind all of those.",
            ))
            .build();
        AnyOfBuilder::new()
            .item(list)
            .item(text)
            .description(Some("NUMA nodes that a device is given: 1 to 64."))
            .into()
    }
}

impl ToSchema for GuestNumaIds {}

/// The modes of the debug console.
pub(super) fn debug_console() -> RefOr<Schema> {
    modes(&[
        ConsoleMode::Off,
        ConsoleMode::Pty,
        ConsoleMode::Tty,
        ConsoleMode::File,
    ])
}

fn modes(modes: &[ConsoleMode]) -> RefOr<Schema> {
    let names = modes.iter().map(|mode| format!("{mode:?}"));
    let mode = ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some("Where it is connected to."));
    mode.enum_values(Some(names)).into()
}

/// The types of images that are there.
pub(super) fn image_type() -> RefOr<Schema> {
    let types = [ImageType::Qcow2, ImageType::Raw, ImageType::Unknown];
    let image = ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some(
            "What the image is. `Unknown` is what its first bytes say; sector 0 of an image that is \
             found to be raw can only be read.",
        ))
        .default(Some(json!(ImageType::default())));
    image
        .enum_values(Some(types.map(|image| json!(image))))
        .into()
}

/// A switch for a virtual IOMMU that is not there yet.
pub(super) fn no_iommu() -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(Type::Boolean)
        .description(Some(
            "Whether it is behind a virtual IOMMU. There is none yet.",
        ))
        .enum_values(Some([false]))
        .default(Some(json!(false)))
        .into()
}

/// Adds to the schema of a type in a request what the reader of JSON takes beyond the type: `null`
/// for every member that may be absent, and members that are not there yet, with values that ask
/// for nothing.
///
/// # Returns
/// The names of schemas that it refers to now, with the schemas.
pub fn complete_schema(type_name: &str, schema: &mut Value) -> Vec<(String, Value)> {
    let required: Vec<Value> = match schema.get("required") {
        Some(Value::Array(names)) => names.clone(),
        _ => Vec::new(),
    };
    let Some(Value::Object(members)) = schema.get_mut("properties") else {
        return Vec::new();
    };
    for (name, member) in members.iter_mut() {
        if !required.contains(&json!(name)) {
            if member["type"] == "array" && member.get("default").is_none() {
                member["default"] = json!([]);
            }
            allow_null(member);
        }
    }
    let mut used = Vec::new();
    let not_yet = spelling_of(type_name).map_or(&[][..], |spelling| spelling.not_yet);
    for not_yet in not_yet {
        if let Some(field) = not_yet.field {
            let (name, nothing) = nothing_asked(not_yet.usual_json);
            let reference = Ref::from_schema_name(&name).ref_location;
            members.insert(field.to_owned(), json!({ "$ref": reference }));
            used.push((name, nothing));
        }
    }
    used
}

fn allow_null(member: &mut Value) {
    let Value::Object(member) = member else {
        return;
    };
    let no_value = json!("null");
    if let Some(reference) = member.remove("$ref") {
        let either = json!([{ "$ref": reference }, { "type": no_value }]);
        member.insert("oneOf".to_owned(), either);
    }
    // What has none of these is nullable already: `oneOf` is utoipa's way to say it.
    match member.get_mut("type") {
        Some(Value::Array(types)) if types.contains(&no_value) => {}
        Some(Value::Array(types)) => types.push(no_value),
        Some(one) => *one = json!([one.clone(), no_value]),
        None => {}
    }
    if let Some(Value::Array(values)) = member.get_mut("enum") {
        values.push(Value::Null);
    }
}

/// A member that is not there yet: the name and the schema of values that are taken all the same.
fn nothing_asked(usual: Option<&str>) -> (String, Value) {
    let usual: Option<Value> = usual.and_then(|usual| serde_json::from_str(usual).ok());
    let about = "Not there yet: taken only where it asks for nothing.";
    let Some(usual) = usual else {
        let schema = json!({ "description": about, "enum": [null, []] });
        return ("NotYet".to_owned(), schema);
    };
    let word = match &usual {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let (first, rest) = word.split_at_checked(1).unwrap_or((&word, ""));
    let name = format!("NotYet{}{rest}", first.to_uppercase());
    let mut group = Map::new();
    group.insert("type".to_owned(), json!("object"));
    group.insert(
        "additionalProperties".to_owned(),
        json!({ "$ref": Ref::from_schema_name(&name).ref_location }),
    );
    let schema = json!({
        "description": about,
        "anyOf": [{ "enum": [null, [], usual] }, group],
    });
    (name, schema)
}
