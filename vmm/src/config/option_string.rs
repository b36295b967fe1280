//! Option strings: `key=value,list=[0-3,7],pairs=[0@[1,2]],path="a,b"`.
//!
//! A value runs up to the next comma. Brackets hold lists together, and within double quotes every
//! character stands for itself, save that two quotes in a row stand for one. What a value means is
//! up to the type it is read into: [`Word`] is the serde deserializer of one value, [`option`]
//! puts the keys of one option together.

use std::cell::Cell;

use serde::de::value::SeqDeserializer;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, IntoDeserializer, SeqAccess, Visitor,
};

use super::error::Problem;
use super::spelling::{Fallback, Key, NotYet, Spelling, Value, suggestion, word_of};
use super::tree::{Error, Node};

/// The most numbers that one range of a list may stand for.
const MAX_RANGE: u64 = 1 << 16;

/// Why a text cannot be taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SyntaxError {
    /// A quotation that never ends.
    #[error("a double quote is missing")]
    UnclosedQuote,
    /// A list that never ends.
    #[error("a closing bracket is missing; quote the value if the bracket belongs to it")]
    UnclosedBracket,
    /// The end of a list that never began.
    #[error("an opening bracket is missing; quote the value if the bracket belongs to it")]
    StrayBracket,
}

/// Splits a text at every `separator` that stands outside brackets and quotes.
fn split(text: &str, separator: char) -> Result<Vec<&str>, SyntaxError> {
    let mut pieces = Vec::new();
    let mut start = 0;
    let mut quoted = false;
    let mut depth = 0_usize;
    for (position, character) in text.char_indices() {
        match character {
            '"' => quoted = !quoted,
            _ if quoted => {}
            '[' => depth += 1,
            ']' => depth = depth.checked_sub(1).ok_or(SyntaxError::StrayBracket)?,
            _ if character == separator && depth == 0 => {
                pieces.push(&text[start..position]);
                start = position + character.len_utf8();
            }
            _ => {}
        }
    }
    pieces.push(&text[start..]);
    match (quoted, depth) {
        (true, _) => Err(SyntaxError::UnclosedQuote),
        (false, 0) => Ok(pieces),
        (false, _) => Err(SyntaxError::UnclosedBracket),
    }
}

/// Takes the quotes off.
fn unquote(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character != '"' {
            plain.push(character);
        } else if quoted && characters.next_if_eq(&'"').is_some() {
            plain.push('"');
        } else {
            quoted = !quoted;
        }
    }
    plain
}

/// Reads one option into the members of its type, by JSON name; what is absent gets its default.
/// Keys that cannot be used are reported and left out.
pub fn option(name: &str, text: &str, spelling: &Spelling, problems: &mut Vec<Problem>) -> Node {
    let before = problems.len();
    let mut reader = OptionReader {
        name,
        spelling,
        given: Vec::new(),
        word: None,
        problems,
    };
    match split(text, ',') {
        Ok(pieces) => pieces.into_iter().for_each(|piece| reader.piece(piece)),
        Err(error) => {
            let problem = Problem::invalid(format_args!("{name} {text}"), error);
            reader.problems.push(problem);
        }
    }
    // A key at fault may be the one that is missed.
    if reader.problems.len() == before {
        reader.require(text);
    }
    reader.finish()
}

/// Reads one number, as a value that is part of another is written.
///
/// # Errors
/// It is none, or does not fit.
pub fn number(text: &str) -> Result<u32, Error> {
    u32::deserialize(Word::new(text))
}

/// Reads bytes, with an optional suffix K, M, G or T.
///
/// # Errors
/// It is no size, or does not fit.
pub fn bytes(text: &str) -> Result<u64, Error> {
    u64::deserialize(Word {
        size: true,
        ..Word::new(text)
    })
}

/// Reads a list of numbers, as a value that may be something else too is written.
///
/// # Errors
/// It is no list, or an item is no number or range, or does not fit.
pub fn numbers(text: &str) -> Result<Vec<u32>, Error> {
    Vec::deserialize(Word::new(text))
}

/// A value on the command line, before it has a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// The option at fault if the value is wrong: `--cpus boot=x`.
    pub origin: String,
    /// The value, quotes and brackets included.
    text: String,
    /// Whether a number may have a suffix K, M, G or T.
    size: bool,
}

impl Text {
    /// The value as something to read a type from.
    pub fn word(&self) -> Word<'_, 'static> {
        Word {
            text: &self.text,
            size: self.size,
            range: None,
        }
    }
}

struct OptionReader<'a> {
    name: &'a str,
    spelling: &'a Spelling,
    given: Vec<(&'static Key, &'a str)>,
    /// The bare word, and the piece that it comes from.
    word: Option<(&'static str, &'a str)>,
    problems: &'a mut Vec<Problem>,
}

impl<'a> OptionReader<'a> {
    fn origin(&self, piece: &str) -> String {
        format!("{} {piece}", self.name)
    }

    fn invalid(&mut self, piece: &str, reason: impl std::fmt::Display) {
        self.problems
            .push(Problem::invalid(self.origin(piece), reason));
    }

    fn piece(&mut self, piece: &'a str) {
        match piece.split_once('=') {
            Some((name, text)) => self.pair(piece, name, text),
            None => self.bare(piece),
        }
    }

    fn pair(&mut self, piece: &'a str, name: &'a str, text: &'a str) {
        if let Some(not_yet) = self.spelling.not_yet_option(name) {
            self.not_yet(not_yet, name, Some(text));
            return;
        }
        let Some(key) = self.spelling.key(name) else {
            let suggestion = self.suggestion(name);
            self.invalid(piece, format_args!("unknown key \"{name}\"; {suggestion}"));
            return;
        };
        if text.is_empty() && key.may_be_empty {
            return;
        }
        if text.is_empty() {
            let form = key.value;
            self.invalid(piece, format_args!("the value is missing: {name}={form}"));
        } else if self.given.iter().any(|(given, _)| given.option == name) {
            self.invalid(piece, format_args!("\"{name}\" is given twice"));
        } else {
            self.given.push((key, text));
            if let Some(word) = key.implies {
                self.word(word, piece);
            }
        }
    }

    fn bare(&mut self, piece: &'a str) {
        if piece.is_empty() {
            let forms = self.spelling.forms();
            self.invalid(piece, format_args!("something is missing: {forms}"));
            return;
        }
        if let Some(not_yet) = self.spelling.not_yet_option(piece) {
            self.not_yet(not_yet, piece, None);
            return;
        }
        let words = self.spelling.bare.iter().flat_map(|bare| bare.words);
        if let Some(word) = words.into_iter().find(|word| **word == piece) {
            self.word(word, piece);
            return;
        }
        let first = self.spelling.keys.first();
        let reason = match (self.spelling.key(piece), &self.spelling.bare, first) {
            (Some(key), _, _) => format!("the value is missing: {piece}={}", key.value),
            (None, None, Some(key)) if piece.starts_with(|c: char| c.is_ascii_digit()) => {
                format!("not key=value; did you mean \"{}={piece}\"?", key.option)
            }
            _ => format!("expected one of {}", self.spelling.forms()),
        };
        self.invalid(piece, reason);
    }

    fn word(&mut self, word: &'static str, piece: &'a str) {
        match self.word {
            None => self.word = Some((word, piece)),
            Some((_, first)) => {
                self.invalid(piece, format_args!("contradicts \"{first}\" before it"));
            }
        }
    }

    fn not_yet(&mut self, not_yet: &NotYet, name: &str, text: Option<&str>) {
        if text.is_none() || not_yet.usual_text != text {
            let origin = self.origin(name);
            self.problems.push(Problem::NotYet(origin));
        }
    }

    fn suggestion(&self, name: &str) -> String {
        match self.spelling.keys {
            [] => format!("expected one of {}", self.spelling.forms()),
            keys => suggestion(name, keys.iter().map(|key| key.option)),
        }
    }

    /// Reports required keys that are missing from `text`.
    fn require(&mut self, text: &str) {
        for key in self.spelling.keys {
            let mut others = self.given.iter().map(|(given, _)| given);
            let needed = match key.default {
                Fallback::Required => true,
                Fallback::RequiredInGroup => {
                    others.clone().any(|given| given.group() == key.group())
                }
                _ => false,
            };
            if needed && !others.any(|given| given.option == key.option) {
                self.invalid(
                    text,
                    format_args!("{}={} is missing", key.option, key.value),
                );
            }
        }
    }

    /// Where the value of a key comes from: the text that was given for it, or else its default.
    fn source(&self, key: &Key) -> Option<(String, &'a str)> {
        let given = self
            .given
            .iter()
            .find(|(given, _)| given.option == key.option);
        let text = match (given, key.default) {
            (Some((_, text)), _) => *text,
            (None, Fallback::Value(text)) => text,
            (None, Fallback::SameAs(other)) => {
                return self.source(self.spelling.key(other)?);
            }
            (
                None,
                Fallback::None
                | Fallback::Required
                | Fallback::RequiredInGroup
                | Fallback::Absent(_),
            ) => return None,
        };
        Some((self.origin(&format!("{}={text}", key.option)), text))
    }

    fn finish(self) -> Node {
        let mut members = Vec::new();
        if let Some(bare) = &self.spelling.bare {
            let (word, piece) = self.word.unwrap_or((bare.default, bare.default));
            let mode = Text {
                origin: self.origin(piece),
                text: word.to_string(),
                size: false,
            };
            members.push((bare.field.to_string(), Node::Text(mode)));
        }
        for key in self.spelling.keys {
            if let Some((origin, text)) = self.source(key) {
                let text = Text {
                    origin,
                    text: text.to_string(),
                    size: key.value == Value::Size,
                };
                put(&mut members, key.field, Node::Text(text));
            }
        }
        Node::Map(members)
    }
}

/// Puts a value where a path of names, with dots between them, says.
fn put(members: &mut Vec<(String, Node)>, path: &str, value: Node) {
    let Some((group, rest)) = path.split_once('.') else {
        members.push((path.to_owned(), value));
        return;
    };
    match members.iter_mut().find(|(name, _)| name == group) {
        Some((_, Node::Map(inner))) => put(inner, rest, value),
        _ => {
            let mut inner = Vec::new();
            put(&mut inner, rest, value);
            members.push((group.to_owned(), Node::Map(inner)));
        }
    }
}

/// One value on the command line, read as whatever the type asks for.
#[derive(Clone, Copy, Debug)]
pub struct Word<'a, 'r> {
    text: &'a str,
    size: bool,
    /// In a list: where the numbers that a range stands for beyond its first are left.
    range: Option<&'r Cell<Option<(u64, u64)>>>,
}

impl<'a> Word<'a, 'static> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            size: false,
            range: None,
        }
    }
}

impl<'a> Word<'a, '_> {
    fn part(self, text: &'a str) -> Word<'a, 'static> {
        Word {
            text,
            size: self.size,
            range: None,
        }
    }

    fn number(self) -> Result<u64, Error> {
        match (self.range, self.text.split_once('-')) {
            (Some(rest), Some((first, last))) => {
                let (first, last) = (self.one_number(first)?, self.one_number(last)?);
                if last < first || last - first >= MAX_RANGE {
                    return Err(Error::custom(format_args!(
                        "the range {} must ascend and hold at most {MAX_RANGE} numbers",
                        self.text
                    )));
                }
                rest.set((first < last).then(|| (first + 1, last)));
                Ok(first)
            }
            _ => self.one_number(self.text),
        }
    }

    fn one_number(self, text: &str) -> Result<u64, Error> {
        let parsed = match text.strip_prefix("0x") {
            Some(digits) => unsigned(digits, 16),
            None if self.size => size(text),
            None => unsigned(text, 10),
        };
        parsed.ok_or_else(|| {
            Error::custom(if self.size {
                format!("\"{text}\" is not a size; expected bytes, or K, M, G or T of them: 1G")
            } else {
                format!("\"{text}\" is not a number")
            })
        })
    }
}

/// Reads digits; unlike the standard parser takes no sign.
fn unsigned(digits: &str, radix: u32) -> Option<u64> {
    let plain = digits.starts_with(|digit: char| digit.is_digit(radix));
    u64::from_str_radix(digits, radix).ok().filter(|_| plain)
}

/// Reads bytes with an optional binary suffix.
fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.chars().last()? {
        'K' => (text.strip_suffix('K')?, 10),
        'M' => (text.strip_suffix('M')?, 20),
        'G' => (text.strip_suffix('G')?, 30),
        'T' => (text.strip_suffix('T')?, 40),
        _ => (text, 0),
    };
    unsigned(digits, 10)?.checked_mul(1 << shift)
}

/// Reads integers and says which values fit when one does not.
macro_rules! integers {
    ($($method:ident $visit:ident $type:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let value = $type::try_from(self.number()?).map_err(|_| {
                Error::custom(format_args!("out of range: at most {}", $type::MAX))
            })?;
            visitor.$visit(value)
        })*
    };
}

impl<'de> Deserializer<'de> for Word<'de, '_> {
    type Error = Error;

    integers! {
        deserialize_u8 visit_u8 u8
        deserialize_u16 visit_u16 u16
        deserialize_u32 visit_u32 u32
        deserialize_u64 visit_u64 u64
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.text {
            "on" => visitor.visit_bool(true),
            "off" => visitor.visit_bool(false),
            _ => Err(Error::custom("expected on or off")),
        }
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_string(unquote(self.text))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let bracketed = self.text.strip_prefix('[');
        let items = match bracketed.and_then(|text| text.strip_suffix(']')) {
            Some("") => Vec::new(),
            Some(items) => split(items, ',').map_err(Error::custom)?,
            None => vec![self.text],
        };
        if items.contains(&"") {
            return Err(Error::custom("an item of the list is missing"));
        }
        visitor.visit_seq(Items {
            items: items.into_iter(),
            list: self.part(self.text),
            range: None,
        })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let Some(separator) = super::separator_of(name) else {
            return Err(Error::custom(format_args!("{name} cannot be given here")));
        };
        let parts = split(self.text, separator).map_err(Error::custom)?;
        if parts.len() != fields.len() {
            let form: Vec<String> = fields.iter().map(|field| format!("<{field}>")).collect();
            let form = form.join(&separator.to_string());
            return Err(Error::custom(format_args!(
                "\"{}\" is not of the form {form}",
                self.text
            )));
        }
        let parts = parts.into_iter().map(|text| self.part(text));
        visitor.visit_seq(SeqDeserializer::new(parts))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let words = variants
            .iter()
            .filter_map(|variant| Some((variant, word_of(name, variant)?)));
        match words.clone().find(|(_, word)| word == self.text) {
            Some((variant, _)) => visitor.visit_enum(variant.into_deserializer()),
            None => {
                let words: Vec<String> = words.map(|(_, word)| word).collect();
                let suggestion = suggestion(self.text, words.iter().map(String::as_str));
                Err(Error::custom(suggestion))
            }
        }
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple
        tuple_struct map identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, Error> for Word<'de, '_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// The items of a list. A range stands for each of its numbers, if the items are numbers.
struct Items<'a> {
    items: std::vec::IntoIter<&'a str>,
    list: Word<'a, 'static>,
    /// The first and the last number that a range still stands for.
    range: Option<(u64, u64)>,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        if let Some((next, last)) = self.range {
            self.range = (next < last).then(|| (next + 1, last));
            return seed.deserialize(next.into_deserializer()).map(Some);
        }
        let Some(item) = self.items.next() else {
            return Ok(None);
        };
        let range = Cell::new(None);
        let word = Word {
            range: Some(&range),
            ..self.list.part(item)
        };
        let value = seed.deserialize(word)?;
        self.range = range.get();
        Ok(Some(value))
    }
}

#[cfg(test)]
mod tests;
