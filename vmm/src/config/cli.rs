//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, PathBufValueParser, Str};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches};

use super::error::{ConfigErrors, Problem};
use super::spelling::Fallback;
use super::target::{API_SOCKET, EVENT_MONITOR, Target, TargetOption};
use super::tree::{self, Node};
use super::{Place, SECTIONS, Section, VM, VmConfig, help, option_string, payload};
use crate::logger::{self, Format};

/// What a command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Run a virtual machine, or wait for requests.
    Run {
        /// The virtual machine, not validated yet; none is one that the API is to create.
        config: Option<Box<VmConfig>>,
        /// What is not about the virtual machine.
        options: RunOptions,
    },
    /// Show what a virtual machine would be, without running it.
    Plan {
        /// The virtual machine, not validated yet.
        config: Box<VmConfig>,
        /// How it is shown.
        options: PlanOptions,
    },
    /// Print this text to standard output and succeed: the help or the version.
    Print(String),
}

/// What a VMM does beside running a virtual machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunOptions {
    /// What is logged.
    pub log: LogOptions,
    /// Where events are reported.
    pub event_monitor: Option<Target>,
    /// Where requests come from.
    pub api_socket: Option<Target>,
    /// Whether it stays when the guest has ended.
    pub no_shutdown: bool,
}

/// What is logged, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// How often `-v` was given: the more, the more is logged.
    pub verbosity: u8,
    /// The file that is logged to; standard error if absent.
    pub file: Option<PathBuf>,
    /// What each line looks like.
    pub format: Format,
}

/// How a plan is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanOptions {
    /// Folder that the ACPI tables are written to.
    pub folder: Option<PathBuf>,
    /// Whether JSON is printed rather than text.
    pub json: bool,
    /// Recorded facts of the host it is for; this host if absent.
    pub facts: Option<PathBuf>,
}

/// Why a command line cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// An unknown option, an option given twice, or one without its value.
    #[error("{0}")]
    Usage(String),
    /// Values that are wrong.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
}

impl CliError {
    /// Exit code of a process whose command line cannot be understood; what goes wrong later has
    /// another one.
    pub const EXIT_CODE: u8 = 2;
}

/// Reads a command line, the name of the program first.
///
/// # Errors
/// The command line cannot be understood: every wrong option and key at once, save that an unknown
/// option hides the rest. What the values amount to is for [`VmConfig::validate`] to check.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, CliError> {
    let matches = match command().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(error) => {
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                    Ok(Command::Print(error.to_string()))
                }
                _ => Err(CliError::Usage(usage(&error))),
            };
        }
    };
    let mut problems = Vec::new();
    refuse_what_is_not_there(&matches, &mut problems);
    let format = log_format(&matches, &mut problems);
    let event_monitor = target(&EVENT_MONITOR, &matches, &mut problems);
    let api_socket = target(&API_SOCKET, &matches, &mut problems);
    let tree = configuration(&matches, &mut problems);
    let config: Option<VmConfig> = tree::read(tree, &mut problems);
    let config = config.map(VmConfig::completed);
    let config = Box::new(ConfigErrors::of(config, problems)?);
    if is_given(&matches, PLAN) {
        let options = PlanOptions {
            folder: matches.get_one(PLAN).cloned(),
            json: matches
                .get_one::<String>(PLAN_FORMAT)
                .is_some_and(|format| format == "json"),
            facts: matches.get_one(PLAN_FACTS).cloned(),
        };
        return Ok(Command::Plan { config, options });
    }
    let waits = api_socket.is_some() && !describes_a_machine(&matches);
    Ok(Command::Run {
        config: (!waits).then_some(config),
        options: RunOptions {
            log: LogOptions {
                verbosity: matches.get_count(VERBOSE),
                file: matches.get_one(LOG_FILE).cloned(),
                format,
            },
            event_monitor,
            api_socket,
            no_shutdown: matches.get_flag(NO_SHUTDOWN),
        },
    })
}

/// Whether any option is about a virtual machine.
fn describes_a_machine(matches: &ArgMatches) -> bool {
    let payload = payload::SPELLING.keys.iter().map(|key| key.option);
    let sections = SECTIONS.iter().map(|section| section.option);
    let mut options = payload.chain(sections);
    options.any(|option| is_given(matches, option))
}

const VERBOSE: &str = "verbose";
const LOG_FILE: &str = "log-file";
const LOG_FORMAT: &str = "log-format";
const NO_SHUTDOWN: &str = "no-shutdown";
const PLAN: &str = "plan";
const PLAN_FORMAT: &str = "plan-format";
const PLAN_FACTS: &str = "plan-facts";

/// The options, as clap knows them.
fn command() -> clap::Command {
    let payload = payload::SPELLING.keys.iter().map(|key| {
        Arg::new(key.option)
            .value_name(key.value.to_string().replace(['<', '>'], ""))
            .help(key.help)
    });
    let sections = SECTIONS.iter().map(|section| {
        let arg = Arg::new(section.option)
            .value_name(help::value_name(section.spelling))
            .help(help::section(section.spelling));
        match section.place {
            Place::Field(_) => arg,
            Place::List(_) | Place::ListIn(..) => arg.num_args(1..).action(ArgAction::Append),
        }
    });
    let not_yet = not_yet_options().map(|option| {
        Arg::new(option)
            .num_args(0..)
            .action(ArgAction::Append)
            .hide(true)
    });
    let taking_text = payload.chain(sections).chain(not_yet).map(|arg| {
        let name: Str = arg.get_id().as_str().to_string().into();
        arg.long(name).value_parser(OsStringValueParser::new())
    });
    clap::Command::new("cloud-hypervisor")
        .bin_name("cloud-hypervisor")
        .version(concat!("v", env!("CARGO_PKG_VERSION")))
        .about("Runs a virtual machine on KVM")
        .after_help(help::NOTES)
        .next_line_help(true)
        .args(taking_text)
        .args(plan_options())
        .arg(target_option(&API_SOCKET))
        .arg(
            Arg::new(NO_SHUTDOWN)
                .long(NO_SHUTDOWN)
                .action(ArgAction::SetTrue)
                .help("Stay when the guest has ended, and wait for requests"),
        )
        .arg(target_option(&EVENT_MONITOR))
        .args(log_options())
}

/// An option that says where something is, as clap knows it.
fn target_option(option: &TargetOption) -> Arg {
    Arg::new(option.name)
        .long(option.name)
        .value_name(help::value_name(&option.spelling))
        .value_parser(OsStringValueParser::new())
        .help(help::section(&option.spelling))
}

/// What is logged, how and where.
fn log_options() -> [Arg; 3] {
    [
        Arg::new(LOG_FILE)
            .long(LOG_FILE)
            .value_name("path")
            .value_parser(PathBufValueParser::new())
            .help("Log to a file [default: standard error]"),
        Arg::new(LOG_FORMAT)
            .long(LOG_FORMAT)
            .value_name("format")
            .value_parser(OsStringValueParser::new())
            .help(format!(
                "Form of a line of the log, with any of {} [default: {}]",
                logger::tokens(),
                logger::DEFAULT_FORMAT
            )),
        Arg::new(VERBOSE)
            .short('v')
            .action(ArgAction::Count)
            .help("Log more; may be given several times"),
    ]
}

/// What shows a machine instead of running it.
fn plan_options() -> [Arg; 3] {
    [
        Arg::new(PLAN)
            .long(PLAN)
            .value_name("folder")
            .num_args(0..=1)
            .require_equals(true)
            .value_parser(PathBufValueParser::new())
            .help(
                "Show what the guest would see, and write its ACPI tables to the folder, instead of \
                 running it",
            ),
        Arg::new(PLAN_FORMAT)
            .long(PLAN_FORMAT)
            .requires(PLAN)
            .value_parser(["text", "json"])
            .hide_possible_values(true)
            .value_name("text|json")
            .help("Form in which it is shown [default: text]"),
        Arg::new(PLAN_FACTS)
            .long(PLAN_FACTS)
            .requires(PLAN)
            .value_name("path")
            .value_parser(PathBufValueParser::new())
            .help("Facts of the host it is for, as --plan-format json shows them [default: this host]"),
    ]
}

/// Options of the interface that are not there yet.
fn not_yet_options() -> impl Iterator<Item = &'static str> {
    let payload = payload::SPELLING.not_yet.iter();
    payload.chain(VM.not_yet).filter_map(|key| key.option)
}

/// clap's account of an error, without the prefix that the caller gives every error.
pub(crate) fn usage(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    text.trim_end().to_string()
}

/// Whether an option stands on the command line.
fn is_given(matches: &ArgMatches, option: &str) -> bool {
    matches.value_source(option) == Some(ValueSource::CommandLine)
}

fn refuse_what_is_not_there(matches: &ArgMatches, problems: &mut Vec<Problem>) {
    let not_yet = payload::SPELLING.not_yet.iter().chain(VM.not_yet);
    for not_yet in not_yet {
        let Some(option) = not_yet.option.filter(|option| is_given(matches, option)) else {
            continue;
        };
        let values: Vec<&OsString> = matches.get_many(option).into_iter().flatten().collect();
        let usual = not_yet.usual_text;
        if !matches!(values[..], [value] if usual.is_some_and(|usual| value == usual)) {
            problems.push(Problem::NotYet(format!("--{option}")));
        }
    }
}

/// The values of an option, as far as they are text.
fn texts<'a>(matches: &'a ArgMatches, option: &str, problems: &mut Vec<Problem>) -> Vec<&'a str> {
    let values = matches.get_many(option).into_iter().flatten();
    let mut texts = Vec::new();
    for value in values {
        let value: &OsString = value;
        match value.to_str() {
            Some(text) => texts.push(text),
            None => {
                let at = format!("--{option} {}", value.display());
                problems.push(Problem::invalid(at, "is not UTF-8"));
            }
        }
    }
    texts
}

/// The value of an option that says where something is.
fn target(
    option: &TargetOption,
    matches: &ArgMatches,
    problems: &mut Vec<Problem>,
) -> Option<Target> {
    let texts = texts(matches, option.name, problems);
    option.read(texts.first()?, problems)
}

/// The form of the log's lines.
fn log_format(matches: &ArgMatches, problems: &mut Vec<Problem>) -> Format {
    let texts = texts(matches, LOG_FORMAT, problems);
    let Some(text) = texts.first() else {
        return Format::default();
    };
    text.parse().unwrap_or_else(|error| {
        problems.push(Problem::invalid(
            format_args!("--{LOG_FORMAT} {text}"),
            error,
        ));
        Format::default()
    })
}

/// Puts the options together as the members of a [`VmConfig`].
fn configuration(matches: &ArgMatches, problems: &mut Vec<Problem>) -> Node {
    let mut payload_members = Vec::new();
    for key in payload::SPELLING.keys {
        for text in texts(matches, key.option, problems) {
            payload_members.push((key.field.to_string(), Node::String(text.to_string())));
        }
    }
    let mut members = vec![("payload".to_string(), Node::Map(payload_members))];
    for Section {
        option,
        place,
        spelling,
    } in &SECTIONS
    {
        let mut nodes = Vec::new();
        for text in texts(matches, option, problems) {
            let name = format!("--{option}");
            let before = problems.len();
            let node = option_string::option(&name, text, spelling, problems);
            // What is left of an item that is wrong would only be missed by more problems, and so it is
            // with an option that cannot do without some of its keys.
            let mut keys = spelling.keys.iter();
            let is_whole = keys.all(|key| key.default != Fallback::Required);
            if problems.len() == before || matches!(place, Place::Field(_)) && is_whole {
                nodes.push(node);
            }
        }
        put(&mut members, *place, nodes);
    }
    Node::Map(members)
}

/// Puts the values of an option, if there are any, where they belong.
pub(super) fn put(members: &mut Vec<(String, Node)>, place: Place, mut nodes: Vec<Node>) {
    if nodes.is_empty() {
        return;
    }
    match place {
        Place::Field(field) => members.extend(nodes.pop().map(|node| (field.to_string(), node))),
        Place::List(field) => members.push((field.to_string(), Node::List(nodes))),
        Place::ListIn(outer, inner) => {
            let list = (inner.to_string(), Node::List(nodes));
            let outer_node = members.iter_mut().find(|(name, _)| name == outer);
            match outer_node {
                Some((_, Node::Map(fields))) => fields.push(list),
                // RAM that is given in zones has no size of its own.
                _ => {
                    let none = ("size".to_string(), Node::Unsigned(0));
                    members.push((outer.to_string(), Node::Map(vec![none, list])));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
