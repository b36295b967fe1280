//! What all devices have in common (section 4.1): a PCI function whose registers a driver negotiates
//! features by, sets queues up, and starts and resets the device.

mod capabilities;
mod changes;
mod registers;

use std::io;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use pci::config_space::{BarKind, Identity};
use pci::emulated::{
    EmulatedBar, EmulatedError, EmulatedFunction, EmulatedParts, MsixParts, MsixVectors,
};
use pci::{AddressSpace, Bdf, Function, MsiSource, Notification, Region};
use thiserror::Error;
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory as _, Permissions};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::capabilities::Window;
pub use self::changes::ConfigChanges;
use self::changes::Generation;
use self::registers::{Common, Effect};
use super::complaints::Complaints;
use super::queue::{NO_VECTOR, Signal};
use super::{
    Device, DeviceConfig, Fault, FaultSink, GuestMemory, NotStarted, QueueInterrupt, Running,
    Start, VirtQueue, features,
};

/// Bytes of BAR 0, which has all registers.
pub const BAR_SIZE: u64 = 64 << 10;
/// The BAR.
const BAR: u8 = 0;

/// Where registers lie in the BAR.
mod place {
    pub const COMMON: u64 = 0;
    pub const ISR: u64 = 0x1000;
    pub const DEVICE: u64 = 0x2000;
    pub const NOTIFY: u64 = 0x3000;
    pub const MSIX_TABLE: u64 = 0x4000;
    pub const MSIX_PENDING: u64 = 0x8000;

    /// Bytes of the registers of the device's own.
    pub const DEVICE_SIZE: u64 = NOTIFY - DEVICE;
    /// Bytes from a queue's notification register to the next one's.
    pub const NOTIFY_STEP: u64 = 4;
}

/// The most queues: as many as have a notification register, and an interrupt.
const MAX_QUEUES: usize = 1000;

/// Bits of the device status (section 2.1).
pub(super) mod status {
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const NEEDS_RESET: u8 = 64;
}

/// Why a device cannot be put into the machine.
#[derive(Debug, Error)]
pub enum VirtioError {
    /// The host has no room for events.
    #[error("cannot make events for its queues")]
    Events(#[source] io::Error),
    /// The function cannot be made.
    #[error(transparent)]
    Function(#[from] EmulatedError),
    /// More queues than there is room for.
    #[error("{0} queues; at most {MAX_QUEUES} are possible")]
    Queues(usize),
    /// No such queue can be.
    #[error("a queue of {0} entries; a power of two up to 32768 is needed")]
    QueueSize(u16),
}

/// What a device is connected to.
pub struct VirtioParts<'a> {
    /// Its name, for messages.
    pub id: String,
    /// The device.
    pub device: Box<dyn Device>,
    /// What it is on PCI.
    pub identity: Identity,
    /// Where it is.
    pub bdf: Bdf,
    /// Where firmware has put its BAR.
    pub address: u64,
    /// Where the BAR appears.
    pub space: &'a dyn AddressSpace,
    /// Where MSI-X comes from.
    pub msi: Arc<dyn MsiSource>,
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
}

/// A virtio device as a PCI function. Dropping it stops the device.
pub struct VirtioFunction {
    function: Arc<EmulatedFunction>,
    transport: Arc<Transport>,
}

impl VirtioFunction {
    /// Connects a device, which nobody has started yet.
    ///
    /// # Errors
    /// The host has no room for it.
    pub fn new(parts: VirtioParts<'_>) -> Result<Self, VirtioError> {
        let VirtioParts {
            id,
            device,
            identity,
            bdf,
            address,
            space,
            msi,
            memory,
        } = parts;
        let transport = Arc::new(Transport::new(id, device, memory)?);
        let vectors = vectors(transport.kicks.len());
        let function = EmulatedFunction::new(EmulatedParts {
            identity,
            bdf,
            bars: vec![EmulatedBar {
                index: BAR,
                kind: BarKind::Memory64 {
                    prefetchable: false,
                },
                address,
                region: Arc::clone(&transport) as Arc<dyn Region>,
            }],
            capabilities: capabilities::all(),
            msix: Some(MsixParts {
                vectors,
                bar: BAR,
                table: place::MSIX_TABLE,
                pending: place::MSIX_PENDING,
            }),
            space,
            msi,
            hook: Some(Arc::new(Window::of(
                Arc::clone(&transport) as Arc<dyn Region>
            ))),
        })?;
        // Nobody has asked for an interrupt before.
        let _ = transport.vectors.set(function.interrupts());
        Ok(Self {
            function,
            transport,
        })
    }

    /// Lets the device stand still.
    pub fn pause(&self) {
        if let Some(Life::Running(running)) = &mut self.transport.lock().life {
            running.pause();
        }
    }

    /// Lets it go on.
    pub fn resume(&self) {
        if let Some(Life::Running(running)) = &mut self.transport.lock().life {
            running.resume();
        }
    }

    /// Stops the device: it touches guest memory no more.
    pub fn stop(&self) {
        self.transport.lock().stop();
    }
}

/// Interrupts of a device with so many queues: one for each, and one for changes of its registers.
pub fn vectors(queues: usize) -> u16 {
    // There are at most 1000 queues.
    queues as u16 + 1
}

impl Function for VirtioFunction {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.function.read_config(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        self.function.write_config(offset, data);
    }
}

impl Drop for VirtioFunction {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a device is doing.
enum Life {
    Idle(Box<dyn Device>),
    Running(Box<dyn Running>),
}

/// What changes.
struct Inner {
    common: Common,
    /// Always there between two accesses.
    life: Option<Life>,
}

impl Inner {
    /// Whether the driver's choice is one that can be worked with (section 2.2.2).
    fn accepts_features(&self) -> bool {
        let is_offered = self.common.are_offered();
        match &self.life {
            Some(Life::Idle(device)) => is_offered && device.accepts(self.common.features()),
            _ => is_offered,
        }
    }

    fn stop(&mut self) {
        self.life = match self.life.take() {
            Some(Life::Running(running)) => Some(Life::Idle(running.stop())),
            life => life,
        };
    }
}

/// What workers may use while registers are accessed.
struct Shared {
    id: String,
    status: AtomicU8,
    isr: Arc<AtomicU8>,
    config_vector: Arc<AtomicU16>,
    /// A driver can reset a device and break the rules again as often as it likes.
    complaints: Complaints,
}

/// The registers, and the device behind them.
struct Transport {
    shared: Arc<Shared>,
    config: Arc<dyn DeviceConfig>,
    generation: Arc<Generation>,
    memory: Arc<GuestMemory>,
    kicks: Vec<Arc<EventFd>>,
    notifications: Vec<Notification>,
    queue_vectors: Vec<Arc<AtomicU16>>,
    vectors: Arc<OnceLock<Arc<MsixVectors>>>,
    inner: Mutex<Inner>,
}

impl Transport {
    fn new(
        id: String,
        device: Box<dyn Device>,
        memory: Arc<GuestMemory>,
    ) -> Result<Self, VirtioError> {
        let sizes = device.queue_sizes();
        if sizes.len() > MAX_QUEUES {
            return Err(VirtioError::Queues(sizes.len()));
        }
        let event = |_: &u16| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Arc::new);
        let kicks: io::Result<Vec<_>> = sizes.iter().map(event).collect();
        let kicks = kicks.map_err(VirtioError::Events)?;
        let queue = |size: &u16| Queue::new(*size).map_err(|_| VirtioError::QueueSize(*size));
        let queues: Result<Vec<_>, _> = sizes.iter().map(queue).collect();
        let notification = |(kick, number): (&Arc<EventFd>, u64)| Notification {
            offset: place::NOTIFY + number * place::NOTIFY_STEP,
            event: Arc::clone(kick),
        };
        let offered =
            device.features() | features::VERSION_1 | features::INDIRECT_DESC | features::EVENT_IDX;
        Ok(Self {
            shared: Arc::new(Shared {
                id,
                status: AtomicU8::new(0),
                isr: Arc::default(),
                config_vector: Arc::new(AtomicU16::new(NO_VECTOR)),
                complaints: Complaints::default(),
            }),
            config: device.config(),
            generation: Arc::default(),
            memory,
            notifications: kicks.iter().zip(0..).map(notification).collect(),
            queue_vectors: kicks
                .iter()
                .map(|_| Arc::new(AtomicU16::new(NO_VECTOR)))
                .collect(),
            kicks,
            vectors: Arc::default(),
            inner: Mutex::new(Inner {
                common: Common::new(offered, queues?),
                life: Some(Life::Idle(device)),
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn interrupt(&self, vector: &Arc<AtomicU16>, bit: u8) -> QueueInterrupt {
        QueueInterrupt {
            signal: Arc::new(Vectors(Arc::clone(&self.vectors))),
            vector: Arc::clone(vector),
            status: Arc::clone(&self.shared.isr),
            bit,
        }
    }

    fn read_common(&self, offset: u64, data: &mut [u8]) {
        let inner = self.lock();
        let vector = |vector: &Arc<AtomicU16>| vector.load(Ordering::SeqCst);
        let selected = inner.common.selected_queue();
        let bytes = inner.common.bytes(
            self.shared.status.load(Ordering::SeqCst),
            *self.generation.lock(),
            vector(&self.shared.config_vector),
            self.queue_vectors.get(selected).map_or(NO_VECTOR, vector),
        );
        for (at, byte) in (offset..).zip(data) {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            *byte = bytes.get(at).copied().unwrap_or(0);
        }
    }

    fn write_common(&self, offset: u64, data: &[u8]) {
        let mut inner = self.lock();
        let running = self.shared.status.load(Ordering::SeqCst) & status::DRIVER_OK != 0;
        match inner.common.write(offset, data, running) {
            Effect::None => {}
            Effect::Status(value) => self.set_status(&mut inner, value),
            Effect::ConfigVector(vector) => {
                let vector = self.known_vector(vector);
                self.shared.config_vector.store(vector, Ordering::SeqCst);
            }
            Effect::QueueVector(queue, vector) => {
                if let Some(slot) = self.queue_vectors.get(queue) {
                    slot.store(self.known_vector(vector), Ordering::SeqCst);
                }
            }
        }
    }

    /// The vector, or none if there is no such vector.
    fn known_vector(&self, vector: u16) -> u16 {
        match vector < vectors(self.kicks.len()) {
            true => vector,
            false => NO_VECTOR,
        }
    }

    fn set_status(&self, inner: &mut Inner, value: u8) {
        if value == 0 {
            self.reset(inner);
            return;
        }
        let before = self.shared.status.load(Ordering::SeqCst);
        // Bits are set one by one and cleared by a reset alone.
        let mut value = before | value & !status::NEEDS_RESET;
        let set = |bit| value & bit != 0 && before & bit == 0;
        let (features_ok, driver_ok) = (set(status::FEATURES_OK), set(status::DRIVER_OK));
        if features_ok && !inner.accepts_features() {
            value &= !status::FEATURES_OK;
        }
        if driver_ok && value & status::FEATURES_OK == 0 {
            value &= !status::DRIVER_OK;
        }
        self.shared.status.fetch_or(value, Ordering::SeqCst);
        if driver_ok && value & status::DRIVER_OK != 0 {
            self.start(inner);
        }
    }

    fn reset(&self, inner: &mut Inner) {
        inner.stop();
        inner.common.reset();
        for kick in &self.kicks {
            // What was said before is not meant for the next driver.
            let _ = kick.read();
        }
        for vector in self
            .queue_vectors
            .iter()
            .chain([&self.shared.config_vector])
        {
            vector.store(NO_VECTOR, Ordering::SeqCst);
        }
        self.shared.isr.store(0, Ordering::SeqCst);
        self.shared.status.store(0, Ordering::SeqCst);
    }

    fn start(&self, inner: &mut Inner) {
        let Some(Life::Idle(device)) = inner.life.take_if(|life| matches!(life, Life::Idle(_)))
        else {
            return;
        };
        let interrupt = self.interrupt(&self.shared.config_vector, CONFIG_CHANGED);
        let config_changes = ConfigChanges {
            generation: Arc::clone(&self.generation),
            interrupt: interrupt.clone(),
        };
        let faults = Faults {
            shared: Arc::clone(&self.shared),
            interrupt,
        };
        let (queues, broken) = self.queues(&inner.common);
        if let Some(index) = broken {
            inner.life = Some(Life::Idle(device));
            faults.fault(&Fault::Queue {
                index,
                source: virtio_queue::Error::InvalidChain,
            });
            return;
        }
        let start = Start {
            features: inner.common.features(),
            queues,
            faults: Arc::new(faults.clone()),
            config_changes,
        };
        inner.life = Some(match device.start(start) {
            Ok(running) => Life::Running(running),
            Err(NotStarted { device, reason }) => {
                faults.fault(&Fault::Host(reason));
                Life::Idle(device)
            }
        });
    }

    /// The queues that the driver has enabled, and one that cannot be, if there is one.
    fn queues(&self, common: &Common) -> (Vec<VirtQueue>, Option<u16>) {
        let memory = self.memory.get();
        let mut queues = Vec::new();
        for (((queue, index), kick), vector) in common
            .queues()
            .zip(0..)
            .zip(&self.kicks)
            .zip(&self.queue_vectors)
        {
            if !queue.ready() {
                continue;
            }
            if !is_in_memory(&queue, &memory) {
                return (Vec::new(), Some(index));
            }
            queues.push(VirtQueue::new(
                index,
                queue,
                Arc::clone(&self.memory),
                Arc::clone(kick),
                self.interrupt(vector, QUEUE_USED),
            ));
        }
        (queues, None)
    }
}

/// Interrupt status: buffers were used (section 4.1.4.5).
const QUEUE_USED: u8 = 1;
/// Interrupt status: registers have changed.
const CONFIG_CHANGED: u8 = 2;

/// Whether all three parts of a queue are in memory (section 2.7).
fn is_in_memory(queue: &Queue, memory: &super::Memory) -> bool {
    let size = usize::from(queue.size());
    let parts = [
        (queue.desc_table(), 16 * size, Permissions::Read),
        (queue.avail_ring(), 6 + 2 * size, Permissions::Read),
        (queue.used_ring(), 6 + 8 * size, Permissions::ReadWrite),
    ];
    parts.into_iter().all(|(address, bytes, permissions)| {
        memory.check_range(GuestAddress(address), bytes, permissions)
    })
}

/// The vectors of the function, once it is there.
struct Vectors(Arc<OnceLock<Arc<MsixVectors>>>);

impl Signal for Vectors {
    fn signal(&self, vector: u16) {
        if let Some(vectors) = self.0.get() {
            vectors.signal(vector);
        }
    }
}

/// Says to the driver that the device needs a reset.
#[derive(Clone)]
struct Faults {
    shared: Arc<Shared>,
    interrupt: QueueInterrupt,
}

impl FaultSink for Faults {
    fn fault(&self, fault: &Fault) {
        let before = self
            .shared
            .status
            .fetch_or(status::NEEDS_RESET, Ordering::SeqCst);
        if before & status::NEEDS_RESET == 0 {
            let source = std::error::Error::source(fault);
            let why = source
                .map(|source| format!(": {source}"))
                .unwrap_or_default();
            let id = &self.shared.id;
            self.shared.complaints.warn(format_args!(
                "device {id} stands still until its driver resets it: {fault}{why}"
            ));
        }
        self.interrupt.send();
    }
}

impl Region for Transport {
    fn size(&self) -> u64 {
        BAR_SIZE
    }

    fn mappable(&self) -> &[pci::MappableArea] {
        &[]
    }

    fn notifications(&self) -> &[Notification] {
        &self.notifications
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset {
            place::ISR => {
                if let Some(byte) = data.first_mut() {
                    *byte = self.shared.isr.swap(0, Ordering::SeqCst);
                }
            }
            place::DEVICE..place::NOTIFY => {
                let offset = offset - place::DEVICE;
                let left = usize::try_from(place::DEVICE_SIZE - offset).unwrap_or(usize::MAX);
                let length = data.len().min(left);
                if let Some(inside) = data.get_mut(..length) {
                    let _unchanged = self.generation.lock();
                    self.config.read(offset, inside);
                }
            }
            place::COMMON..place::ISR => self.read_common(offset, data),
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match offset {
            place::COMMON..place::ISR => self.write_common(offset, data),
            place::DEVICE..place::NOTIFY => self.config.write(offset - place::DEVICE, data),
            place::NOTIFY..place::MSIX_TABLE => {
                let number = (offset - place::NOTIFY) / place::NOTIFY_STEP;
                let kick = usize::try_from(number)
                    .ok()
                    .and_then(|number| self.kicks.get(number));
                if let Some(kick) = kick {
                    // A full counter is as good.
                    let _ = kick.write(1);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
