//! The host's side of virtio devices: opened once, for all boots of a virtual machine.

mod console;
mod descriptors;
mod disk;
mod limits;
mod net;
mod rng;
mod vsock;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::Arc;

use devices::virtio::Device;
use devices::virtio::block::ImageError;
use devices::virtio::console::{Console, Line};
use devices::virtio::rng::Rng;
use thiserror::Error;

use self::disk::Disk;
use self::limits::Groups;
use self::net::NetInterface;
pub use self::net::{GivenTap, GivenTaps, NetError};
use self::vsock::Sockets;
use crate::api::VmCounters;
use crate::config::VmConfig;
use crate::console::Port;
use crate::listener::ListenError;
use crate::plan::VirtioKind;

/// Why something that a device needs cannot be had.
#[derive(Debug, Error)]
pub enum BackendError {
    /// A file cannot be opened.
    #[error("{option}: cannot open it")]
    Open {
        /// The option at fault.
        option: String,
        /// Why not.
        source: io::Error,
    },
    /// The console has no room for events.
    #[error("--console: cannot make events")]
    Console(#[source] io::Error),
    /// An image cannot be used.
    #[error("{option}")]
    Image {
        /// The option at fault.
        option: String,
        /// Why not.
        source: ImageError,
    },
    /// A socket cannot be listened on.
    #[error("{option}")]
    Socket {
        /// The option at fault.
        option: String,
        /// Why not.
        source: ListenError,
    },
    /// A network interface has no host's end.
    #[error("{option}")]
    Net {
        /// The option at fault.
        option: String,
        /// Why not.
        source: NetError,
    },
}

/// What virtio devices need of the host.
pub struct Backends {
    rng: Option<File>,
    /// By the disks' names.
    disks: BTreeMap<String, Disk>,
    /// By the interfaces' names.
    net: BTreeMap<String, NetInterface>,
    console: Option<Arc<Line>>,
    vsock: Option<Sockets>,
}

impl Backends {
    /// Opens what the devices of a configuration need. All of them must have names. `console` is what
    /// the host has of the console, if there is one, `taps` are those that others have opened for it.
    ///
    /// # Errors
    /// Something is not there.
    pub fn open(
        config: &VmConfig,
        console: Option<&Port>,
        taps: &GivenTaps,
    ) -> Result<Self, BackendError> {
        let rng = config.rng.as_ref().map(rng::open).transpose()?;
        let groups = Groups::new(&config.rate_limit_groups);
        let disks = config.disks.iter();
        let disks = disks.map(|disk| Ok((name(disk.id.as_ref()), Disk::open(disk, &groups)?)));
        let net = config.net.iter();
        let net = net.map(|net| Ok((name(net.id.as_ref()), NetInterface::open(net, taps)?)));
        Ok(Self {
            rng,
            disks: disks.collect::<Result<_, _>>()?,
            net: net.collect::<Result<_, _>>()?,
            console: console
                .map(console::connect)
                .transpose()
                .map_err(BackendError::Console)?,
            vsock: config.vsock.as_ref().map(Sockets::open).transpose()?,
        })
    }

    /// A device of that name for one boot; nothing if the configuration has none of that kind.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn device(&self, kind: VirtioKind, name: &str) -> io::Result<Option<Box<dyn Device>>> {
        match kind {
            VirtioKind::Rng => {
                let source = self.rng.as_ref().map(File::try_clone).transpose()?;
                Ok(source.map(|source| Box::new(Rng::new(source)) as Box<dyn Device>))
            }
            VirtioKind::Block => {
                let disk = self.disks.get(name);
                Ok(disk.map(|disk| Box::new(disk.device()) as Box<dyn Device>))
            }
            VirtioKind::Console => {
                let line = self.console.as_ref().map(Arc::clone);
                Ok(line.map(|line| Box::new(Console::new(line)) as Box<dyn Device>))
            }
            VirtioKind::Vsock => {
                let vsock = self.vsock.as_ref();
                Ok(vsock.map(|vsock| Box::new(vsock.device()) as Box<dyn Device>))
            }
            VirtioKind::Net => {
                let net = self.net.get(name);
                Ok(net.map(|net| Box::new(net.device()) as Box<dyn Device>))
            }
        }
    }

    /// What devices have counted, over all boots; those that count nothing are not in it.
    pub fn counters(&self) -> VmCounters {
        let disks = self.disks.iter();
        let disks = disks.map(|(name, disk)| (name.clone(), disk.counters()));
        let net = self.net.iter();
        let net = net.map(|(name, net)| (name.clone(), net.counters()));
        let all = disks.chain(net);
        all.map(|(name, values)| (name, named(values))).collect()
    }
}

fn name(id: Option<&String>) -> String {
    id.cloned().unwrap_or_default()
}

fn named(values: Vec<(&'static str, u64)>) -> BTreeMap<String, u64> {
    let values = values.into_iter();
    values
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}
