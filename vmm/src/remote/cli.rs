//! The command line of `ch-remote`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::PathBufValueParser;
use clap::error::ErrorKind;
use clap::{Arg, ArgGroup};

use super::commands::{COMMANDS, Call, Takes, arg};
use crate::config::cli::{CliError, usage};
use crate::config::{
    DeviceConfig, DiskConfig, FromOption, NetConfig, UserDeviceConfig, VsockConfig,
};

/// What a command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Ask a VMM for something.
    Call {
        /// The socket that it listens on.
        socket: PathBuf,
        /// What it is asked for.
        call: Call,
    },
    /// Print this text to standard output and succeed: the help or the version.
    Print(String),
}

const API_SOCKET: &str = "api-socket";

/// Reads a command line, the name of the program first.
///
/// # Errors
/// It cannot be understood, values are wrong, or the command takes what is not there yet. Nothing has
/// been sent then.
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
    let socket = matches.get_one::<PathBuf>(API_SOCKET);
    let given = matches.subcommand().and_then(|(name, matches)| {
        let command = COMMANDS.iter().find(|command| command.name == name)?;
        Some((command, matches))
    });
    // clap demands both.
    let (Some(socket), Some((command, matches))) = (socket, given) else {
        let missing = "--api-socket or the command is missing";
        return Err(CliError::Usage(missing.to_owned()));
    };
    Ok(Command::Call {
        socket: socket.clone(),
        call: command.call(matches)?,
    })
}

fn command() -> clap::Command {
    let commands = COMMANDS.iter().map(|command| {
        let takes = clap::Command::new(command.name)
            .about(command.about())
            .next_line_help(true);
        arguments(takes, command.takes)
    });
    clap::Command::new("ch-remote")
        .bin_name("ch-remote")
        .version(concat!("v", env!("CARGO_PKG_VERSION")))
        .about("Asks a running VMM for something")
        .subcommand_required(true)
        .arg(
            Arg::new(API_SOCKET)
                .long(API_SOCKET)
                .value_name("path")
                .required(true)
                .value_parser(PathBufValueParser::new())
                .help("The Unix socket that the VMM was given as its --api-socket"),
        )
        .subcommands(commands)
}

/// A size on the command line, for help.
const SIZE: &str = "bytes, or K, M, G or T of them";

fn arguments(command: clap::Command, takes: Takes) -> clap::Command {
    let keys = |keys: String| {
        let arg = Arg::new(arg::VALUE).value_name("KEY=VALUE,...");
        arg.required(true).help(keys)
    };
    let value = |name: &'static str, help: &'static str| {
        let arg = Arg::new(arg::VALUE).value_name(name);
        arg.required(true).help(help)
    };
    let option = |name: &'static str, form: &'static str, help: String| {
        Arg::new(name).long(name).value_name(form).help(help)
    };
    match takes {
        Takes::Nothing => command,
        Takes::Config => command.arg(
            Arg::new(arg::VALUE)
                .value_name("path")
                .value_parser(PathBufValueParser::new())
                .help("File with the configuration as JSON; - is standard input [default: -]"),
        ),
        Takes::Device => command.arg(keys(DeviceConfig::keys())),
        Takes::UserDevice => command.arg(keys(UserDeviceConfig::keys())),
        Takes::Disk => command.arg(keys(DiskConfig::keys())),
        Takes::Net => command.arg(keys(NetConfig::keys())),
        Takes::Vsock => command.arg(keys(VsockConfig::keys())),
        Takes::Id => command.arg(value("id", "Name of the device")),
        Takes::Resize => command
            .arg(option(
                arg::BALLOON,
                "size",
                format!("Size of the balloon: {SIZE}"),
            ))
            .arg(option(arg::CPUS, "count", "vCPUs".to_owned()))
            .arg(option(arg::MEMORY, "size", format!("RAM: {SIZE}")))
            .group(
                ArgGroup::new("what")
                    .args([arg::BALLOON, arg::CPUS, arg::MEMORY])
                    .required(true)
                    .multiple(true),
            ),
        Takes::ResizeDisk => command
            .arg(option(arg::DISK, "id", "Name of the disk".to_owned()).required(true))
            .arg(option(arg::SIZE, "size", format!("Its size: {SIZE}")).required(true)),
        Takes::ResizeZone => command
            .arg(option(arg::ID, "id", "Name of the memory zone".to_owned()).required(true))
            .arg(option(arg::SIZE, "size", format!("Its size: {SIZE}")).required(true)),
        Takes::Destination => command.arg(value("url", "Where to save it: file://<path>")),
        // Whatever is given here, the answer is that it is not there yet.
        Takes::NotYet => command.arg(
            Arg::new(arg::VALUE)
                .num_args(0..)
                .allow_hyphen_values(true)
                .hide(true),
        ),
    }
}

#[cfg(test)]
mod tests;
