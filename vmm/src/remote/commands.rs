//! The commands: what each takes, and what it asks for.

use std::path::PathBuf;

use clap::ArgMatches;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::api::{Effect, Method, ROUTES, VmRemoveDevice};
use crate::config::cli::CliError;
use crate::config::{
    DeviceConfig, DiskConfig, FromOption, NetConfig, Problem, UserDeviceConfig, VsockConfig,
    number, size,
};

/// What the arguments are called, for clap.
pub(super) mod arg {
    pub const VALUE: &str = "value";
    pub const BALLOON: &str = "balloon";
    pub const CPUS: &str = "cpus";
    pub const MEMORY: &str = "memory";
    pub const DISK: &str = "disk";
    pub const ID: &str = "id";
    pub const SIZE: &str = "size";
}

/// A request, before it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its method.
    pub method: Method,
    /// The name of its route.
    pub route: &'static str,
    /// What is sent along.
    pub body: Body,
    /// Descriptors that this process has inherited, to be sent along too.
    pub files: Vec<u32>,
    /// What is printed of the answer.
    pub print: Print,
}

/// What is sent along with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Nothing.
    None,
    /// This JSON.
    Json(String),
    /// What is in this file, as it is; `-` is standard input.
    File(PathBuf),
}

/// What is printed of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Print {
    /// The body as it came; nothing where there is none.
    Body,
    /// The NUMA nodes in it, as tables.
    Numa,
}

/// One command.
#[derive(Debug)]
pub(super) struct Command {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub takes: Takes,
    /// What it does, where that is not just what the route does.
    about: Option<&'static str>,
    route: &'static str,
    route_about: &'static str,
    method: Method,
    is_there: bool,
    print: Print,
}

/// What a command takes, and what becomes its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    /// Nothing.
    Nothing,
    /// The file with a configuration.
    Config,
    /// The keys of `--device`.
    Device,
    /// The keys of `--user-device`.
    UserDevice,
    /// The keys of `--disk`.
    Disk,
    /// The keys of `--net`.
    Net,
    /// The keys of `--vsock`.
    Vsock,
    /// The name of a device.
    Id,
    /// `--balloon`, `--cpus`, `--memory`: at least one.
    Resize,
    /// `--disk` and `--size`.
    ResizeDisk,
    /// `--id` and `--size`.
    ResizeZone,
    /// A URL to save something to.
    Destination,
    /// The keys of an option that is not there yet.
    NotYet,
}

impl Command {
    /// What it does, in a sentence.
    pub fn about(&self) -> String {
        let about = self.about.unwrap_or(self.route_about);
        match self.is_there {
            true => about.to_owned(),
            false => format!("{about}; not supported yet"),
        }
    }

    /// What it asks for with these arguments.
    ///
    /// # Errors
    /// Values are wrong, or of an option that is not there yet.
    pub fn call(&self, matches: &ArgMatches) -> Result<Call, CliError> {
        let (body, files) = match self.takes {
            Takes::Net => self.net(matches)?,
            _ => (self.body(matches)?, Vec::new()),
        };
        Ok(Call {
            method: self.method,
            route: self.route,
            body,
            files,
            print: self.print,
        })
    }

    /// Numbers of descriptors mean something to their process alone: they are sent themselves.
    fn net(&self, matches: &ArgMatches) -> Result<(Body, Vec<u32>), CliError> {
        let text = matches.get_one::<String>(arg::VALUE);
        let text = text.map_or("", String::as_str);
        let mut net = NetConfig::from_option(self.name, text)?;
        let files = std::mem::take(&mut net.fds);
        Ok((Body::Json(json(&net)?.to_string()), files))
    }

    fn body(&self, matches: &ArgMatches) -> Result<Body, CliError> {
        let text = |id: &str| matches.get_one::<String>(id).map_or("", String::as_str);
        let bytes = |id: &str| size(&format!("--{id}"), text(id));
        let body = match self.takes {
            Takes::Nothing => return Ok(Body::None),
            Takes::Config => {
                let path = matches.get_one::<PathBuf>(arg::VALUE);
                return Ok(Body::File(path.cloned().unwrap_or_else(|| "-".into())));
            }
            Takes::Device => self.device::<DeviceConfig>(text(arg::VALUE))?,
            Takes::UserDevice => self.device::<UserDeviceConfig>(text(arg::VALUE))?,
            Takes::Disk => self.device::<DiskConfig>(text(arg::VALUE))?,
            // Read by itself: see `net`.
            Takes::Net => return Ok(Body::None),
            Takes::Vsock => self.device::<VsockConfig>(text(arg::VALUE))?,
            Takes::Id => json(&VmRemoveDevice {
                id: text(arg::VALUE).to_owned(),
            })?,
            Takes::Resize => resize(matches)?,
            Takes::ResizeDisk => {
                json!({ "id": text(arg::DISK), "desired_size": bytes(arg::SIZE)? })
            }
            Takes::ResizeZone => {
                json!({ "id": text(arg::ID), "desired_ram": bytes(arg::SIZE)? })
            }
            Takes::Destination => json!({ "destination_url": text(arg::VALUE) }),
            Takes::NotYet => {
                let problem = Problem::NotYet(self.name.to_owned());
                return Err(CliError::Config(problem.into()));
            }
        };
        Ok(Body::Json(body.to_string()))
    }

    fn device<T: FromOption + Serialize>(&self, text: &str) -> Result<Value, CliError> {
        json(&T::from_option(self.name, text)?)
    }
}

fn resize(matches: &ArgMatches) -> Result<Value, CliError> {
    let text = |id: &str| matches.get_one::<String>(id);
    let mut body = Map::new();
    if let Some(cpus) = text(arg::CPUS) {
        body.insert("desired_vcpus".to_owned(), number("--cpus", cpus)?.into());
    }
    if let Some(memory) = text(arg::MEMORY) {
        body.insert("desired_ram".to_owned(), size("--memory", memory)?.into());
    }
    if let Some(balloon) = text(arg::BALLOON) {
        let bytes = size("--balloon", balloon)?;
        body.insert("desired_balloon".to_owned(), bytes.into());
    }
    Ok(body.into())
}

fn json<T: Serialize>(value: &T) -> Result<Value, CliError> {
    serde_json::to_value(value).map_err(|error| CliError::Usage(error.to_string()))
}

/// A command of a route that there is. Anything else does not compile.
const fn command(name: &'static str, route: &str, takes: Takes) -> Command {
    let mut index = 0;
    while index < ROUTES.len() {
        let found = &ROUTES[index];
        if same(found.name, route) {
            return Command {
                name,
                takes,
                about: None,
                route: found.name,
                route_about: found.about,
                method: found.method,
                is_there: !matches!(found.effect, Effect::NotYet),
                print: Print::Body,
            };
        }
        index += 1;
    }
    panic!("no such route")
}

const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut index = 0;
    while index < a.len() && index < b.len() && a[index] == b[index] {
        index += 1;
    }
    index == a.len() && index == b.len()
}

/// Every command, by name.
pub(super) const COMMANDS: [Command; 32] = [
    command("add-device", "vm.add-device", Takes::Device),
    command("add-disk", "vm.add-disk", Takes::Disk),
    command("add-fs", "vm.add-fs", Takes::NotYet),
    command(
        "add-generic-vhost-user",
        "vm.add-generic-vhost-user",
        Takes::NotYet,
    ),
    command("add-net", "vm.add-net", Takes::Net),
    command("add-pmem", "vm.add-pmem", Takes::NotYet),
    command("add-user-device", "vm.add-user-device", Takes::UserDevice),
    command("add-vdpa", "vm.add-vdpa", Takes::NotYet),
    command("add-vsock", "vm.add-vsock", Takes::Vsock),
    command("boot", "vm.boot", Takes::Nothing),
    command("coredump", "vm.coredump", Takes::Destination),
    command("counters", "vm.counters", Takes::Nothing),
    command("create", "vm.create", Takes::Config),
    command("delete", "vm.delete", Takes::Nothing),
    command("info", "vm.info", Takes::Nothing),
    command("nmi", "vm.nmi", Takes::Nothing),
    Command {
        about: Some("Shows the guest's NUMA nodes, and the devices that own some"),
        print: Print::Numa,
        ..command("numa", "vm.info", Takes::Nothing)
    },
    command("pause", "vm.pause", Takes::Nothing),
    command("ping", "vmm.ping", Takes::Nothing),
    command("power-button", "vm.power-button", Takes::Nothing),
    command("reboot", "vm.reboot", Takes::Nothing),
    command("receive-migration", "vm.receive-migration", Takes::NotYet),
    command("remove-device", "vm.remove-device", Takes::Id),
    command("resize", "vm.resize", Takes::Resize),
    command("resize-disk", "vm.resize-disk", Takes::ResizeDisk),
    command("resize-zone", "vm.resize-zone", Takes::ResizeZone),
    command("restore", "vm.restore", Takes::NotYet),
    command("resume", "vm.resume", Takes::Nothing),
    command("send-migration", "vm.send-migration", Takes::NotYet),
    command("shutdown", "vm.shutdown", Takes::Nothing),
    command("shutdown-vmm", "vmm.shutdown", Takes::Nothing),
    command("snapshot", "vm.snapshot", Takes::Destination),
];
