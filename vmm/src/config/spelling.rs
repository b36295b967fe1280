//! How the command line spells what the configuration's types call by their JSON names.
//!
//! Each type has one table. Reading options, refusing what is not there yet and `--help` all go by
//! it, so they cannot disagree.

use std::fmt;

/// The spelling of one type.
#[derive(Debug)]
pub struct Spelling {
    /// Name of the type, as serde knows it.
    pub type_name: &'static str,
    /// What it is, for `--help`.
    pub about: &'static str,
    /// The field that a word without a key stands for.
    pub bare: Option<Bare>,
    /// Its keys.
    pub keys: &'static [Key],
    /// Keys and words that belong to the interface and are not there yet.
    pub not_yet: &'static [NotYet],
}

/// A field that is given as a word without a key, as `tty` in `--serial tty`.
#[derive(Debug)]
pub struct Bare {
    /// JSON name of the field.
    pub field: &'static str,
    /// The words that may stand there.
    pub words: &'static [&'static str],
    /// The word that stands for an absent one.
    pub default: &'static str,
}

/// One key of an option.
#[derive(Debug)]
pub struct Key {
    /// Name on the command line.
    pub option: &'static str,
    /// Name in JSON. Where the command line has keys for the members of a group, it is a path:
    /// `rate_limiter_config.bandwidth.size`.
    pub field: &'static str,
    /// Form of the value.
    pub value: Value,
    /// What an absent key means.
    pub default: Fallback,
    /// The bare word that this key brings with it: `file` in `--serial file=<path>`.
    pub implies: Option<&'static str>,
    /// What it is, for `--help`.
    pub help: &'static str,
    /// Whether a value that is left out, as in `tap=,mac=`, is the same as an absent key.
    pub may_be_empty: bool,
}

/// Form of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// `on` or `off`.
    Switch,
    /// Bytes, with an optional suffix K, M, G or T.
    Size,
    /// Whatever the type of the field says; the text is for `--help`.
    Typed(&'static str),
}

/// What an absent key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// Nothing: the field stays absent.
    None,
    /// Nothing does: the key must be given.
    Required,
    /// Nothing, unless another key of its group is given: then this one must be, too.
    RequiredInGroup,
    /// The same as this value.
    Value(&'static str),
    /// The same as another key of the option.
    SameAs(&'static str),
    /// The field stays absent, which means this.
    Absent(&'static str),
}

/// Something that belongs to the interface and is not there yet.
#[derive(Debug)]
pub struct NotYet {
    /// Name on the command line, where it has one.
    pub option: Option<&'static str>,
    /// Name in JSON, where it has one.
    pub field: Option<&'static str>,
    /// The value on the command line that asks for what is done anyway, where there is one.
    pub usual_text: Option<&'static str>,
    /// The same in JSON.
    pub usual_json: Option<&'static str>,
}

impl Key {
    /// A key without a default.
    pub const fn new(
        option: &'static str,
        field: &'static str,
        value: Value,
        help: &'static str,
    ) -> Self {
        Self {
            option,
            field,
            value,
            default: Fallback::None,
            implies: None,
            help,
            may_be_empty: false,
        }
    }

    /// The same key, whose value may be left out.
    pub const fn or_empty(mut self) -> Self {
        self.may_be_empty = true;
        self
    }

    /// The group of JSON that it is a member of, if it is not one of the option's type itself.
    pub fn group(&self) -> Option<&'static str> {
        self.field.rsplit_once('.').map(|(group, _)| group)
    }

    /// The same key with a default.
    pub const fn or(mut self, default: Fallback) -> Self {
        self.default = default;
        self
    }

    /// The same key, which brings a bare word with it.
    pub const fn implies(mut self, word: &'static str) -> Self {
        self.implies = Some(word);
        self
    }
}

impl NotYet {
    /// Called the same on the command line and in JSON.
    pub const fn both(name: &'static str) -> Self {
        Self::named(name, name)
    }

    /// Called differently on the command line and in JSON.
    pub const fn named(option: &'static str, field: &'static str) -> Self {
        Self {
            field: Some(field),
            ..Self::option(option)
        }
    }

    /// On the command line only.
    pub const fn option(option: &'static str) -> Self {
        Self {
            option: Some(option),
            field: None,
            usual_text: None,
            usual_json: None,
        }
    }

    /// In JSON only.
    pub const fn field(field: &'static str) -> Self {
        Self {
            option: None,
            field: Some(field),
            usual_text: None,
            usual_json: None,
        }
    }

    /// The same, except that one value is accepted on the command line.
    pub const fn unless_text(mut self, usual: &'static str) -> Self {
        self.usual_text = Some(usual);
        self
    }

    /// The same, except that one value is accepted in JSON.
    pub const fn unless_json(mut self, usual: &'static str) -> Self {
        self.usual_json = Some(usual);
        self
    }
}

impl Spelling {
    /// The key of that name on the command line.
    pub fn key(&self, option: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.option == option)
    }

    /// What is not there yet under that name on the command line.
    pub fn not_yet_option(&self, option: &str) -> Option<&'static NotYet> {
        self.not_yet.iter().find(|key| key.option == Some(option))
    }

    /// What is not there yet under that name in JSON.
    pub fn not_yet_field(&self, field: &str) -> Option<&'static NotYet> {
        self.not_yet.iter().find(|key| key.field == Some(field))
    }

    /// What may stand in the option, for messages: `off, null, file=<path>`.
    pub fn forms(&self) -> String {
        let words = self.bare.iter().flat_map(|bare| bare.words);
        let keys = self
            .keys
            .iter()
            .map(|key| format!("{}={}", key.option, key.value));
        let forms: Vec<String> = words.map(ToString::to_string).chain(keys).collect();
        forms.join(", ")
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Switch => "on|off",
            Self::Size => "<size>",
            Self::Typed(form) => form,
        })
    }
}

/// How the command line writes a variant of an enum: `ByteRange` is `byte-range`.
pub fn word(variant: &str) -> String {
    let mut word = String::new();
    for (i, letter) in variant.char_indices() {
        if letter.is_ascii_uppercase() && i > 0 {
            word.push('-');
        }
        word.push(letter.to_ascii_lowercase());
    }
    word
}

/// Variants that the command line writes otherwise than [`word`] does: the type, the variant, and
/// the word for it; none where it is what an absent key means.
const WORDS: [(&str, &str, Option<&str>); 2] = [
    ("ImageType", "FixedVhd", Some("vhd")),
    ("ImageType", "Unknown", None),
];

/// How the command line writes a variant of an enum of that name, where it can.
pub fn word_of(type_name: &str, variant: &str) -> Option<String> {
    let mut words = WORDS.iter();
    match words.find(|(name, own, _)| (*name, *own) == (type_name, variant)) {
        Some((_, _, own)) => own.map(str::to_owned),
        None => Some(word(variant)),
    }
}

/// Says what an unknown name should have been: the nearest known one, or else all of them.
pub fn suggestion<'a>(name: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let nearest = known
        .clone()
        .map(|candidate| {
            let (name, candidate_name) = (name.to_lowercase(), candidate.to_lowercase());
            (distance(&name, &candidate_name), candidate)
        })
        .min();
    match nearest {
        Some((distance, candidate)) if distance <= candidate.len().div_ceil(3) => {
            format!("did you mean \"{candidate}\"?")
        }
        _ => {
            let known: Vec<&str> = known.collect();
            format!("expected one of {}", known.join(", "))
        }
    }
}

/// Letters to insert, delete or replace, or neighbours to swap, to turn one word into the other.
fn distance(a: &str, b: &str) -> usize {
    /// A name longer than this is no misspelling; comparing it would only cost time.
    const MAX_NAME: usize = 64;
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().max(b.len()) > MAX_NAME {
        return usize::MAX;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(before[j - 2] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_edits_between_words() {
        assert_eq!(distance("size", "size"), 0);
        assert_eq!(distance("sise", "size"), 1);
        assert_eq!(distance("szie", "size"), 1);
        assert_eq!(distance("", "size"), 4);
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn names_the_nearest_word_or_else_all() {
        let known = ["size", "shared", "thp"];
        assert_eq!(
            suggestion("sharde", known.into_iter()),
            "did you mean \"shared\"?"
        );
        assert_eq!(
            suggestion("quantity", known.into_iter()),
            "expected one of size, shared, thp"
        );
        assert_eq!(
            suggestion(&"x".repeat(1 << 20), known.into_iter()),
            "expected one of size, shared, thp"
        );
    }

    #[test]
    fn writes_variants_in_lower_case_with_hyphens() {
        assert_eq!(word("Tty"), "tty");
        assert_eq!(word("ByteRange"), "byte-range");
        let of = |variant| word_of("ImageType", variant);
        assert_eq!(of("Qcow2").as_deref(), Some("qcow2"));
        assert_eq!(of("FixedVhd").as_deref(), Some("vhd"));
        assert_eq!(of("Unknown"), None);
        assert_eq!(word_of("Other", "Unknown").as_deref(), Some("unknown"));
    }
}
