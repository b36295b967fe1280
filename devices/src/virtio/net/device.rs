//! What the device offers: its address, its link, what it can do, and its queues.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::address::HardwareAddress;
use super::backend::{NetBackend, Offloads, is_gone};
use super::control::Control;
use super::port::{Link, Port};
use super::receive::Receiver;
use super::transmit::Transmitter;
use super::worker::NetHandler;
use super::{HEADER, LARGEST};
use crate::virtio::rate_limiter::RateLimiter;
use crate::virtio::{
    Device, DeviceConfig, FaultSink, NotStarted, Running, Start, VirtQueue, Worker,
};

/// Feature bits (section 5.1.3).
pub(super) mod feature {
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const GUEST_ECN: u64 = 1 << 9;
    pub const GUEST_UFO: u64 = 1 << 10;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const HOST_ECN: u64 = 1 << 13;
    pub const HOST_UFO: u64 = 1 << 14;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const CTRL_VQ: u64 = 1 << 17;
    pub const MQ: u64 = 1 << 22;

    /// Frames to the guest may be larger than its largest packet.
    pub const GUEST_SEGMENTS: u64 = GUEST_TSO4 | GUEST_TSO6 | GUEST_UFO;

    /// Each feature with those of which it needs one (section 5.1.3.1).
    const NEEDS: [(u64, u64); 10] = [
        (GUEST_TSO4, GUEST_CSUM),
        (GUEST_TSO6, GUEST_CSUM),
        (GUEST_ECN, GUEST_TSO4 | GUEST_TSO6),
        (GUEST_UFO, GUEST_CSUM),
        (HOST_TSO4, CSUM),
        (HOST_TSO6, CSUM),
        (HOST_ECN, HOST_TSO4 | HOST_TSO6),
        (HOST_UFO, CSUM),
        (MQ, CTRL_VQ),
        (CTRL_GUEST_OFFLOADS, CTRL_VQ),
    ];

    /// Whether each has one that it needs.
    pub fn are_consistent(features: u64) -> bool {
        let mut needs = NEEDS.iter();
        needs.all(|(feature, needs)| features & feature == 0 || features & needs != 0)
    }
}

/// What the host may leave undone for a driver with these features.
pub(super) fn offloads(features: u64) -> Offloads {
    let has = |feature| features & feature != 0;
    Offloads {
        checksums: has(feature::GUEST_CSUM),
        tso4: has(feature::GUEST_TSO4),
        tso6: has(feature::GUEST_TSO6),
        ecn: has(feature::GUEST_ECN),
        ufo: has(feature::GUEST_UFO),
    }
}

/// What host and guest may leave undone in frames, for the other side to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffloadChoice {
    /// Checksums. Nothing else goes without.
    pub checksums: bool,
    /// Segmentation of TCP.
    pub tso: bool,
    /// Fragmentation of UDP.
    pub ufo: bool,
}

/// What a network interface is made of.
pub struct NetParts {
    /// The host's side. It has a queue for each pair.
    pub backend: Arc<NetBackend>,
    /// The guest's address.
    pub mac: HardwareAddress,
    /// The largest packet that the guest is told of, in bytes.
    pub mtu: Option<u16>,
    /// Pairs of queues.
    pub pairs: u16,
    /// Entries of each queue: a power of two.
    pub queue_size: u16,
    /// What it may be told to leave undone.
    pub offloads: OffloadChoice,
}

/// A network interface.
pub struct Net {
    backend: Arc<NetBackend>,
    pairs: u16,
    queues: Vec<u16>,
    features: u64,
    config: Arc<NetConfig>,
}

impl Net {
    /// A network interface that no driver has started.
    pub fn new(parts: NetParts) -> Self {
        let NetParts {
            backend,
            mac,
            mtu,
            pairs,
            queue_size,
            offloads,
        } = parts;
        let offloads = OffloadChoice {
            ufo: offloads.ufo && backend.interface.knows_ufo(),
            ..offloads
        };
        let config = NetConfig {
            mac,
            pairs,
            mtu: mtu.unwrap_or(0),
            is_up: Arc::new(AtomicBool::new(!backend.is_lost())),
        };
        Self {
            backend,
            pairs,
            // A pair each, and the control queue.
            queues: vec![queue_size; 2 * usize::from(pairs) + 1],
            features: offered(offloads, mtu.is_some(), pairs > 1),
            config: Arc::new(config),
        }
    }

    /// The threads for a driver's choice, and the host's queues that they serve.
    fn begin(&self, start: Start) -> io::Result<Serving> {
        let Start {
            features,
            queues,
            faults,
            config_changes,
        } = start;
        let is_up = Arc::clone(&self.config.is_up);
        is_up.store(!self.backend.is_lost(), Ordering::SeqCst);
        let link = Link {
            is_up,
            changes: config_changes,
        };
        let pairs = match features & feature::MQ {
            0 => 1,
            _ => usize::from(self.pairs),
        };
        let port = |queue| Port::new(Arc::clone(&self.backend), queue, link.clone()).map(Arc::new);
        let ports = (0..pairs).map(port).collect::<io::Result<_>>()?;
        // From here on, what fails gives the host's queues back.
        let mut serving = Serving {
            ports,
            workers: Vec::new(),
        };
        if let Some(first) = serving.ports.first() {
            first.set_attached(true)?;
        }
        match self.backend.interface.set_offloads(offloads(features)) {
            Err(error) if !is_gone(&error) => return Err(error),
            // That it is gone shows when it is read.
            _ => {}
        }
        // What is there was not made for this driver.
        self.backend.drain(0);
        let handlers = self.handlers(&serving.ports, features, queues)?;
        for (pair, handler) in handlers.into_iter().enumerate() {
            let name = format!("virtio-net q{pair}");
            let faults: Arc<dyn FaultSink> = Arc::clone(&faults);
            let worker = Worker::start(&name, handler, faults).map_err(|(_, error)| error)?;
            serving.workers.push(worker);
        }
        Ok(serving)
    }

    fn handlers(
        &self,
        ports: &[Arc<Port>],
        features: u64,
        mut queues: Vec<VirtQueue>,
    ) -> io::Result<Vec<NetHandler>> {
        let mergeable = features & feature::MRG_RXBUF != 0;
        let room = match features & feature::GUEST_SEGMENTS {
            // With addresses and a VLAN tag.
            0 => self.backend.interface.mtu().unwrap_or(0) + HEADER + 18,
            _ => LARGEST,
        };
        let checksums = Arc::new(AtomicBool::new(features & feature::GUEST_CSUM != 0));
        let [receiving, sending] = &self.backend.limits;
        let mut take = |index: usize| {
            let is_it = |queue: &VirtQueue| usize::from(queue.index) == index;
            let position = queues.iter().position(is_it)?;
            Some(queues.swap_remove(position))
        };
        let mut handlers = Vec::new();
        for (pair, port) in ports.iter().enumerate() {
            let receiver = match take(2 * pair) {
                Some(queue) => {
                    let limiter = RateLimiter::of(Some(receiving))?;
                    let checksums = Arc::clone(&checksums);
                    Some(Receiver::new(queue, mergeable, room, checksums, limiter))
                }
                None => None,
            };
            let transmitter = match take(2 * pair + 1) {
                Some(queue) => {
                    let limiter = RateLimiter::of(Some(sending))?;
                    Some(Transmitter::new(queue, limiter))
                }
                None => None,
            };
            handlers.push(NetHandler {
                port: Arc::clone(port),
                receiver,
                transmitter,
                control: None,
                lingers: false,
            });
        }
        // Behind those of the pairs that the driver may use (section 5.1.2).
        let queue = take(2 * ports.len()).filter(|_| features & feature::CTRL_VQ != 0);
        if let (Some(queue), Some(first)) = (queue, handlers.first_mut()) {
            let backend = Arc::clone(&self.backend);
            let control = Control::new(queue, features, backend, ports.to_vec(), checksums);
            first.control = Some(control);
        }
        Ok(handlers)
    }
}

/// What is offered.
fn offered(offloads: OffloadChoice, mtu: bool, several: bool) -> u64 {
    let OffloadChoice {
        checksums,
        tso,
        ufo,
    } = offloads;
    let tso = checksums && tso;
    let ufo = checksums && ufo;
    let conditional = [
        (checksums, feature::CSUM),
        (checksums, feature::GUEST_CSUM),
        (checksums, feature::CTRL_GUEST_OFFLOADS),
        (tso, feature::HOST_TSO4),
        (tso, feature::HOST_TSO6),
        (tso, feature::HOST_ECN),
        (tso, feature::GUEST_TSO4),
        (tso, feature::GUEST_TSO6),
        (tso, feature::GUEST_ECN),
        (ufo, feature::HOST_UFO),
        (ufo, feature::GUEST_UFO),
        (mtu, feature::MTU),
        (several, feature::MQ),
    ];
    let always = feature::MAC | feature::STATUS | feature::MRG_RXBUF | feature::CTRL_VQ;
    let features = conditional.iter().filter(|(is_there, _)| *is_there);
    features.fold(always, |features, (_, feature)| features | feature)
}

impl Device for Net {
    fn features(&self) -> u64 {
        self.features
    }

    fn accepts(&self, features: u64) -> bool {
        feature::are_consistent(features)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queues
    }

    fn config(&self) -> Arc<dyn DeviceConfig> {
        Arc::clone(&self.config) as Arc<dyn DeviceConfig>
    }

    fn start(self: Box<Self>, start: Start) -> Result<Box<dyn Running>, NotStarted> {
        match self.begin(start) {
            Ok(serving) => Ok(Box::new(RunningNet {
                device: self,
                serving,
            })),
            Err(reason) => {
                let device = self;
                Err(NotStarted { device, reason })
            }
        }
    }
}

/// Queues that are served. Dropping it ends that.
struct Serving {
    ports: Vec<Arc<Port>>,
    workers: Vec<Worker<NetHandler>>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.workers.clear();
        for port in &self.ports {
            // Frames that nobody asks for are dropped there, or wait there up to its bounds: both will do.
            if port.is_attached()
                && let Err(error) = port.set_attached(false)
            {
                log::debug!("{}: {error}", port.backend().name());
            }
        }
    }
}

struct RunningNet {
    device: Box<Net>,
    serving: Serving,
}

impl Running for RunningNet {
    fn pause(&mut self) {
        self.serving.workers.iter().for_each(Worker::pause);
    }

    fn resume(&mut self) {
        self.serving.workers.iter().for_each(Worker::resume);
    }

    fn stop(self: Box<Self>) -> Box<dyn Device> {
        let Self { device, serving } = *self;
        drop(serving);
        device
    }
}

/// The registers (section 5.1.4).
struct NetConfig {
    mac: HardwareAddress,
    pairs: u16,
    mtu: u16,
    is_up: Arc<AtomicBool>,
}

impl DeviceConfig for NetConfig {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let status = u16::from(self.is_up.load(Ordering::SeqCst));
        let words = [status, self.pairs, self.mtu];
        let registers = self.mac.0.into_iter();
        let mut registers = registers.chain(words.into_iter().flat_map(u16::to_le_bytes));
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut next = registers.nth(offset);
        for byte in data {
            *byte = next.unwrap_or(0);
            next = registers.next();
        }
    }
}
