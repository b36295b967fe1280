//! A configuration as it was written, before it has types: the common form of JSON and options.
//!
//! Both front ends build the same tree and the same serde types are read from it. What they spell
//! differently stays different: a [`Node::Text`] is read as the command line writes it, every
//! other node as JSON does.

use std::fmt;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, Visitor,
};

use super::error::Problem;
use super::option_string::Text;
use super::spelling::{Spelling, suggestion};
use super::spelling_of;

/// Problems after which reading stops: more would not help, and the input may be hostile.
pub const MAX_PROBLEMS: usize = 32;

/// A value as it was written.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// JSON `null`: the same as an absent member.
    Null,
    /// JSON `true` or `false`.
    Bool(bool),
    /// JSON number without sign.
    Unsigned(u64),
    /// JSON number with sign.
    Signed(i64),
    /// JSON number with fraction or exponent.
    Float(f64),
    /// JSON string.
    String(String),
    /// JSON array.
    List(Vec<Node>),
    /// JSON object or option: members in the order they were written in, no name twice.
    Map(Vec<(String, Node)>),
    /// A value on the command line.
    Text(Text),
}

impl Node {
    /// Whether a value asks for nothing beyond `usual`, which is JSON. A group of switches does so
    /// if each of them does.
    fn asks_for_nothing(&self, usual: Option<&str>) -> bool {
        match self {
            Self::Null => true,
            Self::List(items) => items.is_empty(),
            Self::Map(members) => {
                usual.is_some()
                    && members
                        .iter()
                        .all(|(_, member)| member.asks_for_nothing(usual))
            }
            scalar => scalar.json().as_deref() == usual,
        }
    }

    /// A scalar as JSON writes it.
    fn json(&self) -> Option<String> {
        match self {
            Self::Null => Some("null".into()),
            Self::Bool(value) => Some(value.to_string()),
            Self::Unsigned(value) => Some(value.to_string()),
            Self::Signed(value) => Some(value.to_string()),
            Self::Float(value) => Some(value.to_string()),
            Self::String(value) => serde_json::to_string(value).ok(),
            Self::List(_) | Self::Map(_) | Self::Text(_) => None,
        }
    }

    /// Takes a member out; `false` if there is none.
    fn remove(&mut self, path: &[Step]) -> bool {
        match (self, path) {
            (Self::Map(members), [Step::Member(name)]) => {
                let index = members.iter().position(|(member, _)| member == name);
                index.map(|index| members.remove(index)).is_some()
            }
            (Self::Map(members), [Step::Member(name), rest @ ..]) => members
                .iter_mut()
                .find(|(member, _)| member == name)
                .is_some_and(|(_, member)| member.remove(rest)),
            (Self::List(items), [Step::Item(index), rest @ ..]) => {
                items.get_mut(*index).is_some_and(|item| item.remove(rest))
            }
            _ => false,
        }
    }
}

/// Reads a type from a tree and reports everything that is wrong with it.
///
/// serde stops at the first error. So a member that is at fault is taken out and the rest read
/// again, until nothing is left to complain about.
pub fn read<T: DeserializeOwned>(mut tree: Node, problems: &mut Vec<Problem>) -> Option<T> {
    let mut removed: Vec<Vec<Step>> = Vec::new();
    loop {
        let error = match T::deserialize(&tree) {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        let at_fault = error.member();
        if !error.misses_one_of(&removed) {
            let problem = error.into_problem();
            // A default that repeats another key repeats its fault.
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        }
        if problems.len() >= MAX_PROBLEMS || !tree.remove(&at_fault) {
            return None;
        }
        removed.push(at_fault);
    }
}

/// Why a type could not be read from a node, and which one.
#[derive(Debug)]
pub struct Error {
    /// Steps from the root, the last one first.
    path: Vec<Step>,
    /// The command line's own account of where it is.
    origin: Option<String>,
    /// The value, as JSON.
    value: Option<String>,
    reason: Reason,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Member(String),
    Item(usize),
}

#[derive(Debug)]
enum Reason {
    NotYet,
    Missing(&'static str),
    Other(String),
}

impl Error {
    fn new(reason: Reason) -> Self {
        Self {
            path: Vec::new(),
            origin: None,
            value: None,
            reason,
        }
    }

    fn under(mut self, step: Step) -> Self {
        self.path.push(step);
        self
    }

    /// The same error, if it is about this very node, with the node's value.
    fn about(mut self, node: &Node) -> Self {
        if self.path.is_empty() && matches!(self.reason, Reason::Other(_)) {
            match node {
                Node::Text(text) => self.origin = Some(text.origin.clone()),
                scalar => self.value = scalar.json(),
            }
        }
        self
    }

    /// Path of the innermost member that contains the fault.
    fn member(&self) -> Vec<Step> {
        let items = self.path.iter();
        let items = items.take_while(|step| matches!(step, Step::Item(_)));
        self.path
            .iter()
            .skip(items.count())
            .rev()
            .cloned()
            .collect()
    }

    /// Whether it is about a required member that is only missing because it was taken out.
    fn misses_one_of(&self, removed: &[Vec<Step>]) -> bool {
        let Reason::Missing(field) = self.reason else {
            return false;
        };
        let mut path: Vec<Step> = self.path.iter().rev().cloned().collect();
        path.push(Step::Member(field.to_string()));
        removed.contains(&path)
    }

    /// Where it is, as JSON clients name it: `disks[1].path`.
    fn location(&self) -> String {
        let mut location = String::new();
        for step in self.path.iter().rev() {
            match step {
                Step::Member(name) if location.is_empty() => location.push_str(name),
                Step::Member(name) => location.push_str(&format!(".{name}")),
                Step::Item(index) => location.push_str(&format!("[{index}]")),
            }
        }
        match self.reason {
            Reason::Missing(field) if location.is_empty() => field.to_string(),
            Reason::Missing(field) => format!("{location}.{field}"),
            Reason::NotYet | Reason::Other(_) => location,
        }
    }

    fn into_problem(self) -> Problem {
        let mut location = self.location();
        if location.is_empty() {
            location.push_str("JSON");
        }
        match (self.reason, self.origin, self.value) {
            (Reason::NotYet, _, _) => Problem::NotYet(location),
            (reason, Some(origin), _) => Problem::invalid(origin, reason),
            (reason, None, Some(value)) => {
                Problem::invalid(format_args!("{location}={value}"), reason)
            }
            (reason, None, None) => Problem::invalid(location, reason),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotYet => f.write_str("not supported yet"),
            Self::Missing(_) => f.write_str("is missing"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self::new(Reason::Other(text.to_string()))
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(format_args!("expected {expected}"))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(format_args!("expected {expected}"))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(Reason::Missing(field))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let suggestion = suggestion(field, expected.iter().copied());
        Self::custom(format_args!("unknown key \"{field}\"; {suggestion}"))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let suggestion = suggestion(variant, expected.iter().copied());
        Self::custom(format_args!("unknown value \"{variant}\"; {suggestion}"))
    }
}

/// Lets the command line's reader answer for a text; every other node says what it is.
macro_rules! texts_are_words {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self {
                Node::Text(text) => text.word().$method(visitor).map_err(|error| error.about(self)),
                _ => self.deserialize_any(visitor),
            }
        })*
    };
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = Error;

    texts_are_words! {
        deserialize_bool deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
        deserialize_seq
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let value = match self {
            Node::Null => visitor.visit_unit(),
            Node::Bool(value) => visitor.visit_bool(*value),
            Node::Unsigned(value) => visitor.visit_u64(*value),
            Node::Signed(value) => visitor.visit_i64(*value),
            Node::Float(value) => visitor.visit_f64(*value),
            Node::String(value) => visitor.visit_borrowed_str(value),
            Node::List(items) => visitor.visit_seq(Items(items.iter().enumerate())),
            Node::Map(members) => visitor.visit_map(Members::new(members, &[], None)),
            Node::Text(text) => text.word().deserialize_any(visitor),
        };
        value.map_err(|error| error.about(self))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Node::Null => visitor.visit_none(),
            value => visitor.visit_some(value),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let value = match self {
            Node::Map(members) => {
                visitor.visit_map(Members::new(members, fields, spelling_of(name)))
            }
            Node::Text(text) => text.word().deserialize_struct(name, fields, visitor),
            // A derived visitor would take an array for the fields in their order.
            _ => Err(de::Error::custom("expected an object")),
        };
        value.map_err(|error| error.about(self))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let value = match self {
            Node::String(variant) => visitor.visit_enum(variant.as_str().into_deserializer()),
            Node::Text(text) => text.word().deserialize_enum(name, variants, visitor),
            _ => {
                let variants = variants.join("\", \"");
                Err(de::Error::custom(format_args!(
                    "expected one of \"{variants}\""
                )))
            }
        };
        value.map_err(|error| error.about(self))
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple
        tuple_struct map identifier ignored_any
    }
}

/// The items of a JSON array.
struct Items<'a>(std::iter::Enumerate<std::slice::Iter<'a, Node>>);

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let Some((index, item)) = self.0.next() else {
            return Ok(None);
        };
        let value = seed.deserialize(item);
        value
            .map(Some)
            .map_err(|error| error.under(Step::Item(index)))
    }
}

/// The members of an object or an option.
struct Members<'a> {
    members: std::slice::Iter<'a, (String, Node)>,
    current: Option<&'a (String, Node)>,
    fields: &'static [&'static str],
    spelling: Option<&'static Spelling>,
}

impl<'a> Members<'a> {
    fn new(
        members: &'a [(String, Node)],
        fields: &'static [&'static str],
        spelling: Option<&'static Spelling>,
    ) -> Self {
        Self {
            members: members.iter(),
            current: None,
            fields,
            spelling,
        }
    }

    /// Whether a member is not there yet and may be passed over, because it asks for nothing.
    fn passes_over(&self, name: &str, value: &Node) -> Result<bool, Error> {
        if matches!(value, Node::Null) && self.fields.contains(&name) {
            return Ok(true);
        }
        let not_yet = self
            .spelling
            .and_then(|spelling| spelling.not_yet_field(name));
        let Some(not_yet) = not_yet else {
            return Ok(false);
        };
        if value.asks_for_nothing(not_yet.usual_json) {
            return Ok(true);
        }
        Err(Error::new(Reason::NotYet).under(Step::Member(name.to_string())))
    }
}

impl<'de> MapAccess<'de> for Members<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        loop {
            let Some(member) = self.members.next() else {
                return Ok(None);
            };
            let (name, value) = member;
            if self.passes_over(name, value)? {
                continue;
            }
            self.current = Some(member);
            let key = seed.deserialize(name.as_str().into_deserializer());
            return key
                .map(Some)
                .map_err(|error: Error| error.under(Step::Member(name.clone())));
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some((name, value)) = self.current.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        seed.deserialize(value)
            .map_err(|error| error.under(Step::Member(name.clone())))
    }
}
