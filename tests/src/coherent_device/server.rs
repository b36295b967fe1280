//! The device as a vfio-user server.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::RawFd;
use std::path::PathBuf;

use thiserror::Error;
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_BAR2_REGION_INDEX,
    VFIO_PCI_BAR4_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
    VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS, VFIO_REGION_INFO_FLAG_MMAP,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info,
    vfio_region_sparse_mmap_area,
};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, ServerBackend, ServerRegion, SparseArea};

use super::config_space::{ConfigSpace, Effect};
use super::dma::{self, GuestMemory, Status};
use super::memory::DeviceMemory;
use super::registers::{self, Action, Registers};
use super::{Options, OptionsError};

/// Bytes of the configuration space of an express function.
const CONFIG_SIZE: u64 = 4096;

/// Why the device cannot be served.
#[derive(Debug, Error)]
pub enum ServeError {
    /// There is no such device.
    #[error("bad options")]
    Options(#[source] OptionsError),
    /// There is no memory for it.
    #[error("cannot make {size:#x} bytes of memory")]
    Memory {
        /// Bytes.
        size: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Nobody could find it.
    #[error("cannot listen at {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: vfio_user::Error,
    },
    /// The client did not say what it should.
    #[error("the connection broke")]
    Connection(#[source] vfio_user::Error),
}

/// The device, ready for its client.
pub struct Server {
    server: vfio_user::Server,
    device: Device,
    keep: bool,
}

impl Server {
    /// Makes the device and its socket.
    ///
    /// # Errors
    /// Any [`ServeError`] but a broken connection.
    pub fn bind(options: Options) -> Result<Self, ServeError> {
        let device = Device::new(&options)?;
        let server = vfio_user::Server::new(
            &options.socket,
            true,
            device.irq_info(),
            device.region_info(),
        )
        .map_err(|source| ServeError::Listen {
            path: options.socket.clone(),
            source,
        })?;
        Ok(Self {
            server,
            device,
            keep: options.keep,
        })
    }

    /// Serves a client until it hangs up, and then the next one if the device is to be kept.
    ///
    /// # Errors
    /// The connection broke, and the device is not to be kept.
    pub fn run(mut self) -> Result<(), ServeError> {
        loop {
            let result = self.server.run(&mut self.device);
            if !self.keep {
                return result.map_err(ServeError::Connection);
            }
            if let Err(error) = result {
                complain(&format!("the connection broke: {error}"));
            }
            self.device.forget_client();
        }
    }
}

/// Says on standard error why nothing happened that somebody waits for.
fn complain(text: &str) {
    eprintln!("coherent_device: {text}");
}

/// What the doorbell does apart from ringing.
#[derive(Clone, Copy, Debug)]
struct Misbehaviour {
    shrink: bool,
    die: bool,
    silent: bool,
}

struct Device {
    config: ConfigSpace,
    registers: Registers,
    reserved: Option<DeviceMemory>,
    memory: Option<DeviceMemory>,
    guest: GuestMemory,
    /// Where MSI-X vectors are sent to.
    events: Vec<Option<File>>,
    misbehaviour: Misbehaviour,
}

impl Device {
    fn new(options: &Options) -> Result<Self, ServeError> {
        options.check().map_err(ServeError::Options)?;
        let memory = |path, usable, bar_size| {
            if bar_size == 0 {
                return Ok(None);
            }
            DeviceMemory::new(path, usable, bar_size)
                .map(Some)
                .map_err(|source| ServeError::Memory {
                    size: usable,
                    source,
                })
        };
        Ok(Self {
            config: ConfigSpace::new(options),
            registers: Registers::new(options.msix),
            reserved: memory(None, options.reserved, options.reserved)?,
            memory: memory(
                options.memory_file.as_deref(),
                options.usable(),
                options.memory,
            )?,
            guest: GuestMemory::default(),
            events: (0..options.msix).map(|_| None).collect(),
            misbehaviour: Misbehaviour {
                shrink: options.shrink_after_doorbell,
                die: options.die_after_doorbell,
                silent: options.silent_after_doorbell,
            },
        })
    }

    fn irq_info(&self) -> Vec<IrqInfo> {
        (0..VFIO_PCI_NUM_IRQS)
            .map(|index| IrqInfo {
                index,
                flags: VFIO_IRQ_INFO_EVENTFD,
                count: if index == VFIO_PCI_MSIX_IRQ_INDEX {
                    self.events.len() as u32
                } else {
                    0
                },
            })
            .collect()
    }

    fn region_info(&self) -> Vec<ServerRegion> {
        (0..VFIO_PCI_NUM_REGIONS)
            .map(|index| match index {
                VFIO_PCI_BAR0_REGION_INDEX => trapped(index, registers::SIZE),
                VFIO_PCI_CONFIG_REGION_INDEX => trapped(index, CONFIG_SIZE),
                _ => match self.memory_at(index) {
                    Some(memory) => mapped(index, memory),
                    None => trapped(index, 0),
                },
            })
            .collect()
    }

    /// The memory behind a region.
    fn memory_at(&self, region: u32) -> Option<&DeviceMemory> {
        match region {
            VFIO_PCI_BAR2_REGION_INDEX => self.reserved.as_ref(),
            VFIO_PCI_BAR4_REGION_INDEX => self.memory.as_ref(),
            _ => None,
        }
    }

    fn reset_function(&mut self) {
        self.config.reset();
        self.registers.reset();
    }

    fn forget_client(&mut self) {
        self.reset_function();
        self.guest.clear();
        self.events.fill_with(|| None);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Ring(vector) => {
                self.misbehave();
                self.send(vector);
            }
            Action::Copy(request) => {
                let status = if self.config.is_bus_master() {
                    dma::copy(request, &self.guest, self.memory.as_ref())
                } else {
                    Status::NoBusMaster
                };
                if status != Status::Done {
                    complain(&format!("{request:x?}: {status:?}"));
                }
                self.registers.finish(status);
            }
        }
    }

    fn misbehave(&mut self) {
        let Misbehaviour {
            shrink,
            die,
            silent,
        } = self.misbehaviour;
        if shrink
            && let Some(memory) = &mut self.memory
            && let Err(error) = memory.shrink()
        {
            complain(&format!("cannot take memory away: {error}"));
        }
        if die {
            // As a crash would be: nothing is cleaned up.
            std::process::exit(1);
        }
        if silent {
            loop {
                std::thread::park();
            }
        }
    }

    fn send(&self, vector: u32) {
        if !self.config.is_bus_master() {
            return complain(&format!("vector {vector}: bus mastering is off"));
        }
        let event = self.events.get(vector as usize);
        match event.and_then(Option::as_ref) {
            Some(mut event) => {
                if let Err(error) = event.write_all(&1_u64.to_ne_bytes()) {
                    complain(&format!("vector {vector}: {error}"));
                }
            }
            None => complain(&format!("vector {vector} is not set up")),
        }
    }
}

/// A region that every access to comes here, or none of size 0.
fn trapped(index: u32, size: u64) -> ServerRegion {
    let flags = if size == 0 {
        0
    } else {
        VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE
    };
    ServerRegion {
        region_info: vfio_region_info {
            argsz: size_of::<vfio_region_info>() as u32,
            flags,
            index,
            cap_offset: 0,
            size,
            offset: 0,
        },
        sparse_areas: Vec::new(),
        mmap_fd: None,
    }
}

/// A region that is memory. It always lists its area, even if that is all of it: the crate sends the
/// descriptor along with the list alone.
fn mapped(index: u32, memory: &DeviceMemory) -> ServerRegion {
    let descriptor: RawFd = memory.descriptor();
    let mut region = trapped(index, memory.bar_size());
    region.region_info.flags |= VFIO_REGION_INFO_FLAG_MMAP;
    region.sparse_areas.push(SparseArea {
        area: vfio_region_sparse_mmap_area {
            offset: 0,
            size: memory.usable(),
        },
    });
    region.mmap_fd = Some(descriptor);
    region
}

impl ServerBackend for Device {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        match region {
            VFIO_PCI_BAR0_REGION_INDEX => self.registers.read(offset, data),
            VFIO_PCI_CONFIG_REGION_INDEX => self.config.read(offset, data),
            _ => {
                let memory = self.memory_at(region).ok_or(io::ErrorKind::NotFound)?;
                memory.read_bar(offset, data)?;
            }
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        match region {
            VFIO_PCI_BAR0_REGION_INDEX => {
                if let Some(action) = self.registers.write(offset, data) {
                    self.act(action);
                }
            }
            VFIO_PCI_CONFIG_REGION_INDEX => {
                if self.config.write(offset, data) == Effect::Reset {
                    self.reset_function();
                }
            }
            _ => {
                let memory = self.memory_at(region).ok_or(io::ErrorKind::NotFound)?;
                memory.write_bar(offset, data)?;
            }
        }
        Ok(())
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        file: Option<File>,
    ) -> io::Result<()> {
        self.guest
            .map(flags, address, size, file.map(|file| (file, offset)))
            .inspect_err(|error| complain(&format!("map {size:#x} at {address:#x}: {error}")))
    }

    fn dma_unmap(&mut self, flags: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        if flags.contains(DmaUnmapFlags::UNMAP_ALL) {
            self.guest.clear();
            return Ok(());
        }
        self.guest
            .unmap(address, size)
            .inspect_err(|error| complain(&format!("unmap {size:#x} at {address:#x}: {error}")))
    }

    fn reset(&mut self) -> io::Result<()> {
        self.reset_function();
        Ok(())
    }

    /// As the protocol has it (vfio-user 0.1, VFIO_USER_DEVICE_SET_IRQS): a descriptor for each vector,
    /// none to turn those off, and no data with a count of 0 to turn all off.
    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        start: u32,
        count: u32,
        files: Vec<File>,
    ) -> io::Result<()> {
        let vectors = start as usize..(start as usize).saturating_add(count as usize);
        if index != VFIO_PCI_MSIX_IRQ_INDEX
            || flags & VFIO_IRQ_SET_ACTION_TRIGGER == 0
            || vectors.end > self.events.len()
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if flags & VFIO_IRQ_SET_DATA_EVENTFD != 0 {
            if !files.is_empty() && files.len() != vectors.len() {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let mut files = files.into_iter();
            for event in &mut self.events[vectors] {
                *event = files.next();
            }
        } else if flags & VFIO_IRQ_SET_DATA_NONE != 0 {
            if vectors.is_empty() {
                self.events.fill_with(|| None);
            }
            for vector in vectors {
                self.send(vector as u32);
            }
        } else {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(())
    }
}
