//! The OpenAPI document (OpenAPI 3.1), from the routes and from the types of their bodies.
//!
//! It ships as `docs/openapi.json`, which the tests compare with what is made here.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use utoipa::openapi::schema::Schema;
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};

use super::routes::{BEFORE_ROUTES, ROOT, ROUTES, Route};
use super::types::{VmCounters, VmInfo, VmRemoveDevice, VmmPingResponse};
use crate::config::{DeviceConfig, UserDeviceConfig, VmConfig, complete_schema};

const ABOUT: &str = "\
Controls one virtual machine, over HTTP/1.1 on the Unix socket of `--api-socket`.

Bodies are JSON (RFC 8259). A member of a request that is `null` counts as absent. An object that \
names a member twice is refused, and so are members that are not known.

An answer that reports an error is a list of texts: what went wrong, and one by one what that came \
from. Any request may be answered with 400 if it is no HTTP request or descriptors came with it, with 405 \
if the path is there for another method, and with 501 if its transfer coding is not known.";

/// The name of the schema of errors.
const ERROR: &str = "Error";

type Schemas = BTreeMap<String, Value>;

/// The document.
pub fn document() -> Value {
    let mut paths = Map::new();
    for route in &ROUTES {
        let method = route.method.as_str().to_lowercase();
        paths.insert(
            format!("/{}", route.name),
            json!({ method: operation(route) }),
        );
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Virtual machine monitor",
            "description": ABOUT,
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{
            "url": format!("http://localhost{}", ROOT.trim_end_matches('/')),
            "description": "The socket of `--api-socket`; the host's name means nothing.",
        }],
        "paths": paths,
        "components": { "schemas": schemas() },
    })
}

fn operation(route: &Route) -> Value {
    let mut statuses = route.statuses();
    statuses.extend(BEFORE_ROUTES);
    let responses: Map<String, Value> = statuses
        .into_iter()
        .map(|status| (status.to_string(), response(route, status)))
        .collect();
    let mut operation = json!({
        "operationId": operation_id(route.name),
        "summary": route.about,
        "responses": responses,
    });
    if let Some(body) = route.body {
        operation["requestBody"] = json!({ "required": true, "content": content(body) });
    }
    operation
}

/// `vm.add-device` as `vmAddDevice`: programs are generated from it.
fn operation_id(name: &str) -> String {
    let mut words = name.split(['.', '-']);
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |id, word| {
        let (letter, rest) = word.split_at_checked(1).unwrap_or((word, ""));
        id + &letter.to_uppercase() + rest
    })
}

fn response(route: &Route, status: u16) -> Value {
    let about = match status {
        200 | 204 => "Done.",
        400 => "The body or what it asks for is wrong.",
        404 if route.name == "vm.remove-device" => {
            "There is no virtual machine, or no such device."
        }
        404 => "There is no virtual machine.",
        405 => "The virtual machine is in a state in which that cannot be done.",
        408 => "The request took too long.",
        409 => "There is a virtual machine already.",
        413 => "The body is too large.",
        431 => "The header is too large.",
        500 => "It was tried and could not be done.",
        501 => "Not there yet, or not on this architecture.",
        503 => "The VMM is ending, or has no room for another connection.",
        _ => "An error.",
    };
    match (status, route.answer) {
        (200, Some(answer)) => json!({ "description": about, "content": content(answer) }),
        (204, _) => json!({ "description": about }),
        _ => json!({ "description": about, "content": content(ERROR) }),
    }
}

fn content(schema: &str) -> Value {
    let reference = Ref::from_schema_name(schema).ref_location;
    json!({ "application/json": { "schema": { "$ref": reference } } })
}

/// Every schema that the document refers to.
fn schemas() -> Schemas {
    let mut found: Vec<(String, RefOr<Schema>)> = Vec::new();
    collect::<VmConfig>(&mut found);
    collect::<DeviceConfig>(&mut found);
    collect::<UserDeviceConfig>(&mut found);
    collect::<VmRemoveDevice>(&mut found);
    collect::<VmmPingResponse>(&mut found);
    collect::<VmInfo>(&mut found);
    found.push(("VmCounters".to_owned(), VmCounters::schema()));
    let mut schemas = Schemas::new();
    for (name, schema) in found {
        schemas.insert(name, serde_json::to_value(schema).unwrap_or_default());
    }
    let mut used = Vec::new();
    for (name, schema) in &mut schemas {
        // Types of answers may get members that a client does not know.
        if schema["additionalProperties"] == false {
            used.extend(complete_schema(name, schema));
        }
    }
    schemas.extend(used);
    let about = "What went wrong, and what that came from, the outermost first.";
    let texts = json!({
        "description": about,
        "type": "array",
        "items": { "type": "string" },
        "minItems": 1,
    });
    schemas.insert(ERROR.to_owned(), texts);
    for schema in schemas.values_mut() {
        finish(schema);
    }
    schemas
}

fn collect<T: ToSchema>(found: &mut Vec<(String, RefOr<Schema>)>) {
    T::schemas(found);
    found.push((T::name().into_owned(), T::schema()));
}

/// Gives integers the bounds of their types, and descriptions a form without links into sources.
fn finish(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            // utoipa's names of formats, and those of the OpenAPI format registry.
            let unsigned = match members.get("format").and_then(Value::as_str) {
                Some("u-int8") => Some(("uint8", u64::from(u8::MAX))),
                Some("u-int16") => Some(("uint16", u64::from(u16::MAX))),
                Some("u-int32") => Some(("uint32", u64::from(u32::MAX))),
                Some("u-int64") => Some(("uint64", u64::MAX)),
                _ => None,
            };
            if let Some((format, most)) = unsigned {
                members.insert("format".to_owned(), json!(format));
                members.entry("maximum").or_insert(json!(most));
                members.entry("minimum").or_insert(json!(0));
            }
            if let Some(Value::String(about)) = members.get_mut("description") {
                *about = without_links(about);
            }
            members.values_mut().for_each(finish);
        }
        Value::Array(items) => items.iter_mut().for_each(finish),
        _ => {}
    }
}

/// A doc comment as plain text: "[`name`](path)" and "[`path::name`]" become "`name`", and lines
/// that were broken at the margin are joined.
fn without_links(comment: &str) -> String {
    let paragraphs = comment
        .split("\n\n")
        .map(|paragraph| paragraph.replace('\n', " "));
    let comment = paragraphs.collect::<Vec<_>>().join("\n\n");
    let mut text = String::new();
    let mut rest = comment.as_str();
    while let Some((before, link)) = rest.split_once("[`") {
        let Some((name, after)) = link.split_once("`]") else {
            break;
        };
        let name = name.rsplit("::").next().unwrap_or(name);
        text.push_str(&format!("{before}`{name}`"));
        rest = match after.strip_prefix('(') {
            Some(path) => path.split_once(')').map_or("", |(_, after)| after),
            None => after,
        };
    }
    text + rest
}

#[cfg(test)]
mod tests;
