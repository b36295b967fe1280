//! `--help`, from the same tables that options are read by.

use super::spelling::{Fallback, Key, Spelling};

/// Describes one option: what it is, and each key with its form and its default.
pub fn section(spelling: &Spelling) -> String {
    let mut lines = vec![spelling.about.to_string()];
    if let Some(bare) = &spelling.bare {
        let words = bare.words.join("|");
        lines.push(format!("  {words} [default: {}]", bare.default));
    }
    lines.extend(spelling.keys.iter().map(|each| format!("  {}", key(each))));
    lines.join("\n")
}

/// Describes the keys of one option, one a line.
pub fn keys(spelling: &Spelling) -> String {
    let lines: Vec<String> = spelling.keys.iter().map(key).collect();
    lines.join("\n")
}

fn key(key: &Key) -> String {
    let Key {
        option,
        field: _,
        value,
        default,
        implies: _,
        help,
        may_be_empty: _,
    } = key;
    let default = match default {
        Fallback::None | Fallback::RequiredInGroup => String::new(),
        Fallback::Required => " [required]".to_owned(),
        Fallback::Value(text) | Fallback::Absent(text) => format!(" [default: {text}]"),
        Fallback::SameAs(other) => format!(" [default: as {other}]"),
    };
    format!("{option}={value}: {help}{default}")
}

/// What the keys of an option look like, for its line in the list.
pub fn value_name(spelling: &Spelling) -> &'static str {
    match (&spelling.bare, spelling.keys) {
        (Some(bare), []) => bare.default,
        (Some(_), _) => "MODE",
        (None, _) => "KEY=VALUE,...",
    }
}

/// What stands below the options.
pub const NOTES: &str = "\
Sizes are bytes, or K, M, G or T of them (powers of 1024). Numbers are decimal, or hexadecimal after 0x.
Lists are [0-3,7]. A value that contains a comma or a bracket is written between double quotes, in which
two double quotes stand for one.";
