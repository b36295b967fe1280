//! What else a driver asks for (section 5.1.6.5).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::{Bytes as _, GuestAddress};

use super::backend::{NetBackend, is_gone};
use super::device::{feature, offloads};
use super::port::Port;
use crate::virtio::{Chain, Fault, MOST_DESCRIPTORS, VirtQueue};

/// Answers (section 5.1.6.5).
const OK: u8 = 0;
const ERROR: u8 = 1;

/// Classes and their commands that are known.
const MQ: u8 = 4;
const PAIRS_SET: u8 = 0;
const GUEST_OFFLOADS: u8 = 5;
const OFFLOADS_SET: u8 = 0;

/// The longest command that is known: two bytes, and eight of offloads.
const LONGEST: usize = 10;

/// What guests may be left to do in frames, among features (section 5.1.6.5.6.1).
const GUEST: u64 = feature::GUEST_CSUM
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::GUEST_ECN
    | feature::GUEST_UFO;

/// Serves the control queue.
pub struct Control {
    queue: VirtQueue,
    features: u64,
    backend: Arc<NetBackend>,
    ports: Vec<Arc<Port>>,
    checksums: Arc<AtomicBool>,
}

impl Control {
    /// Serves a queue; `ports` are all that the driver can have, of which the first is attached.
    pub fn new(
        queue: VirtQueue,
        features: u64,
        backend: Arc<NetBackend>,
        ports: Vec<Arc<Port>>,
        checksums: Arc<AtomicBool>,
    ) -> Self {
        Self {
            queue,
            features,
            backend,
            ports,
            checksums,
        }
    }

    /// The queue.
    pub fn queue(&self) -> &VirtQueue {
        &self.queue
    }

    /// Carries out what is asked for.
    ///
    /// # Errors
    /// The driver has broken the rules.
    pub fn serve(&mut self) -> Result<(), Fault> {
        let Self {
            queue,
            features,
            backend,
            ports,
            checksums,
        } = self;
        queue.serve_all(|chain| {
            let Some((command, answer)) = take_apart(chain.clone()) else {
                return Ok(0);
            };
            let accepted = match command.bytes() {
                [MQ, PAIRS_SET, a, b] => {
                    let pairs = u16::from_le_bytes([*a, *b]);
                    let offered = *features & feature::MQ != 0;
                    offered && set_pairs(ports, pairs)
                }
                [GUEST_OFFLOADS, OFFLOADS_SET, wanted @ ..] => {
                    let wanted: Option<[u8; 8]> = wanted.try_into().ok();
                    let offered = *features & feature::CTRL_GUEST_OFFLOADS != 0;
                    let wanted = wanted.map(u64::from_le_bytes).filter(|_| offered);
                    wanted.is_some_and(|wanted| set_offloads(backend, *features, wanted, checksums))
                }
                _ => false,
            };
            let answered = if accepted { OK } else { ERROR };
            let written = chain.memory().write_obj(answered, answer);
            Ok(u32::from(written.is_ok()))
        })
    }
}

/// A command, as far as one can be known.
struct Command {
    bytes: [u8; LONGEST],
    length: usize,
}

impl Command {
    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// The command of a chain, and where its answer goes; nothing if it goes nowhere that is looked at. A command that is too
/// long or not in memory is empty.
fn take_apart(chain: Chain) -> Option<(Command, GuestAddress)> {
    let memory = Arc::clone(chain.memory());
    let mut command = Command {
        bytes: [0; LONGEST],
        length: 0,
    };
    let mut is_known = true;
    for descriptor in chain.take(MOST_DESCRIPTORS) {
        if descriptor.len() == 0 {
            continue;
        }
        if descriptor.is_write_only() {
            if !is_known {
                command.length = 0;
            }
            return Some((command, descriptor.addr()));
        }
        let count = descriptor.len() as usize;
        let end = command.length.saturating_add(count);
        let room = command.bytes.get_mut(command.length..end);
        let read = room.map(|room| memory.read_slice(room, descriptor.addr()));
        match read {
            Some(Ok(())) => command.length = end,
            _ => is_known = false,
        }
    }
    None
}

/// Attaches so many pairs of queues, and no others (section 5.1.6.5.5).
fn set_pairs(ports: &[Arc<Port>], pairs: u16) -> bool {
    let pairs = usize::from(pairs);
    if pairs == 0 || pairs > ports.len() {
        return false;
    }
    let mut done = true;
    for (index, port) in ports.iter().enumerate() {
        let wanted = index < pairs;
        if port.is_attached() != wanted
            && let Err(error) = port.set_attached(wanted)
        {
            let what = if wanted { "attached" } else { "detached" };
            let name = port.backend().name();
            log::warn!("network interface {name}: queue {index} cannot be {what}: {error}");
            done = false;
        }
    }
    done
}

/// Lets the host leave that much undone (section 5.1.6.5.6).
fn set_offloads(backend: &NetBackend, features: u64, wanted: u64, checksums: &AtomicBool) -> bool {
    let has_all = feature::are_consistent(wanted);
    if wanted & !(features & GUEST) != 0 || !has_all {
        return false;
    }
    match backend.interface.set_offloads(offloads(wanted)) {
        Ok(()) => {}
        // Nothing comes from there.
        Err(error) if is_gone(&error) => {}
        Err(error) => {
            let name = backend.name();
            log::warn!("network interface {name}: offloads cannot be changed: {error}");
            return false;
        }
    }
    checksums.store(wanted & feature::GUEST_CSUM != 0, Ordering::Relaxed);
    true
}
