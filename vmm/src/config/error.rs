//! What can be wrong with a configuration.

use std::fmt;

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Part of the interface, but not there yet: the option (`--cpus features`) or the JSON field
    /// (`cpus.features`).
    #[error("not supported yet: {0}")]
    NotYet(String),
    /// Anything else.
    #[error("{at}: {reason}")]
    Invalid {
        /// The option or the JSON field at fault, with its value.
        at: String,
        /// What is wrong with it and what would be right.
        reason: String,
    },
}

impl Problem {
    /// A problem with the value of `at`.
    pub(super) fn invalid(at: impl fmt::Display, reason: impl fmt::Display) -> Self {
        Self::Invalid {
            at: at.to_string(),
            reason: reason.to_string(),
        }
    }
}

/// Everything that was found wrong with a configuration: at least one problem. Prints as one line
/// for each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines(.0))]
pub struct ConfigErrors(Vec<Problem>);

impl ConfigErrors {
    /// `Err` with the problems, if there are any.
    pub(super) fn check(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Self(problems))
        }
    }

    /// The configuration, if it could be read without a problem.
    pub(super) fn of<T>(config: Option<T>, problems: Vec<Problem>) -> Result<T, Self> {
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(Self(problems)),
        }
    }

    /// The problems, in the order in which they were found.
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }
}

impl From<Problem> for ConfigErrors {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

fn lines(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}
