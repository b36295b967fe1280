//! A device that is somewhere else, in the host's kernel or in another process, as a function of a
//! guest.
//!
//! The guest's configuration space is emulated, with windows to the device where a register is the
//! device's business alone (`header`, `capabilities`, `filter`). BARs are the device's regions, mapped
//! where that is possible, and follow what the guest writes to their registers (`bars`).
//! Interrupts are set up with the device as the guest turns them on (`interrupts`).
//!
//! Locks are taken in this order, and the last is free whenever the machine is asked to place a
//! region, because vCPUs that access one may need it: `placement`, `interrupts`, `config`.

mod bars;
mod capabilities;
mod filter;
mod header;
mod interrupts;
mod intx;
mod lists;
mod lost;
mod msi;
mod msix;
mod page;
mod probe;
mod reader;

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use thiserror::Error;

use crate::config_space::{BarError, ConfigSpace, SIZE, offset};
use crate::device::{DeviceError, SharedDevice, region};
use crate::locks::lock;
use crate::placement::Placement;
use crate::{AddressSpace, BarFacts, Bdf, DeviceFacts, Function, MsiSource};
use bars::BarRegion;
use header::Header;
use interrupts::{Interrupts, Wanted};
use lost::Link;

pub use intx::IntxWiring;
pub use lost::OnLost;
pub use probe::{ProbeError, probe};

/// What a function is connected to.
pub struct Wiring<'a> {
    /// The device, with all interrupts off and as after a reset.
    pub device: SharedDevice,
    /// What was found out about it.
    pub facts: &'a DeviceFacts,
    /// Where firmware has put its BARs, by the positions in `facts.bars`; the guest is not shown
    /// those that are nowhere.
    pub bars: &'a [Option<u64>],
    /// Where the function is.
    pub bdf: Bdf,
    /// Where the BARs appear.
    pub space: Arc<dyn AddressSpace>,
    /// Where MSI and MSI-X come from.
    pub msi: Arc<dyn MsiSource>,
    /// The wired interrupt; without it the function has none.
    pub intx: Option<IntxWiring>,
    /// Registers of BARs that are trapped throughout.
    pub exclude_mmap_bars: &'a [u8],
    /// Told, once, when the device is lost: from any thread, which may be in the middle of the
    /// function, so it must not call back.
    pub on_lost: OnLost,
}

/// Why a device cannot become a function.
#[derive(Debug, Error)]
pub enum FunctionError {
    /// It had some when it was probed.
    #[error("the device has no configuration space any more")]
    NoConfig,
    /// It does not answer, or refuses.
    #[error("cannot read the device's configuration space")]
    Read(#[from] DeviceError),
    /// Every BAR has an address or none.
    #[error("{given} addresses for {bars} BARs")]
    Addresses {
        /// Addresses given.
        given: usize,
        /// BARs of the device.
        bars: usize,
    },
    /// The device is not what it was when it was probed.
    #[error("BAR {index} was planned with {planned:#x} bytes and the device has {size:#x} now")]
    Changed {
        /// Its register.
        index: u8,
        /// Bytes of the BAR.
        planned: u64,
        /// Bytes of the device's region.
        size: u64,
    },
    /// The BARs are not possible together.
    #[error("the planned BARs do not make a function")]
    Bar(#[from] BarError),
    /// The machine does not take a BAR.
    #[error("cannot prepare BAR {index}")]
    Region {
        /// Its register.
        index: u8,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What configuration space and regions share.
struct Shared {
    link: Link,
    interrupts: Mutex<Interrupts>,
}

/// What the guest has changed, and what of it the device knows.
struct Placed {
    bars: Placement,
    /// What the device's command register was set to.
    command: Option<u16>,
}

/// A passed-through function.
///
/// To reboot, make another one after a [`PassthroughFunction::reset`], or [`Device::reset`] where
/// this one is gone: nothing outlives it.
///
/// [`Device::reset`]: crate::device::Device::reset
pub struct PassthroughFunction {
    shared: Arc<Shared>,
    header: Header,
    /// Where accesses to MSI and MSI-X lie in configuration space.
    interrupt_registers: Vec<Range<usize>>,
    placed: Mutex<Placed>,
    config: Mutex<ConfigSpace>,
}

/// What a write to configuration space leads to.
#[derive(Clone, Copy, Debug, Default)]
struct Effects {
    decoding: bool,
    interrupts: bool,
    reset: bool,
}

impl PassthroughFunction {
    /// Connects a device. Its decoders are off and its BARs are where firmware has put them.
    ///
    /// # Errors
    /// The device does not answer or is not what it was, or the machine cannot map it.
    pub fn new(wiring: Wiring) -> Result<Arc<Self>, FunctionError> {
        let Wiring {
            device,
            facts,
            bars,
            bdf,
            space,
            msi,
            intx,
            exclude_mmap_bars,
            on_lost,
        } = wiring;
        let shown = shown_bars(&device, facts, bars)?;
        let intx = intx.filter(|_| facts.intx);
        let header = Header::new(&*device, facts, &shown, intx.as_ref())?;
        let msix = header.offsets.msix.clone().map(Arc::new);
        let vectors = msix.as_ref().map_or(0, |msix| msix.vectors);
        let line = intx.map(|intx| intx.line);
        let shared = Arc::new(Shared {
            link: Link::new(Arc::clone(&device), bdf, on_lost),
            interrupts: Mutex::new(Interrupts::new(msi, line, vectors)),
        });
        let mut placement = Placement::default();
        let page = page::size();
        for (bar, _) in &shown {
            let index = bar.index;
            let bar_region = BarRegion::new(
                Arc::clone(&shared),
                *bar,
                device.region(index.into()),
                msix.clone(),
                !exclude_mmap_bars.contains(&index),
                page,
            );
            placement
                .add(index, bar.kind, Arc::new(bar_region), &*space)
                .map_err(|source| FunctionError::Region { index, source })?;
        }
        let function = Self {
            shared,
            interrupt_registers: header.interrupt_registers(),
            placed: Mutex::new(Placed {
                bars: placement,
                command: None,
            }),
            config: Mutex::new(header.space.clone()),
            header,
        };
        function.follow_decoding();
        function.follow_interrupts();
        Ok(Arc::new(function))
    }

    /// Gives the device up, as if it had said itself that it is lost: for those who learn of it
    /// first.
    pub fn mark_lost(&self, reason: io::Error) {
        self.shared.link.lose(&DeviceError::Lost(reason));
    }

    /// Whether the device is lost.
    pub fn is_lost(&self) -> bool {
        self.shared.link.is_lost()
    }

    /// Gives the interrupts of a lost device back to the machine: what somebody else may still hold
    /// of the device reaches the guest no more. Does nothing while the device is there.
    pub fn abandon_interrupts(&self) {
        if self.is_lost() {
            lock(&self.shared.interrupts).abandon();
        }
    }

    /// Resets the device, if it can be reset, and puts the function back to how it was at the start.
    ///
    /// # Errors
    /// The device refuses, and the function is as at the start all the same; or it is lost, and
    /// nothing changes.
    pub fn reset(&self) -> Result<(), DeviceError> {
        self.shared.link.check()?;
        let mut placed = lock(&self.placed);
        *lock(&self.config) = self.header.space.clone();
        self.place(&mut placed);
        let mut interrupts = lock(&self.shared.interrupts);
        interrupts.turn_off(&self.shared.link);
        interrupts.forget();
        let result = match self.shared.link.can_reset() {
            true => self.shared.link.reset(),
            false => Ok(()),
        };
        interrupts.follow(&self.shared.link, &self.wanted_interrupts());
        drop(interrupts);
        placed.command = None;
        self.place(&mut placed);
        result
    }

    /// Makes BARs and the device's decoders follow configuration space. Whoever writes calls this
    /// behind its write, so the last one to come here sees all writes.
    fn follow_decoding(&self) {
        self.place(&mut lock(&self.placed));
    }

    fn place(&self, placed: &mut Placed) {
        let link = &self.shared.link;
        if link.is_lost() {
            return;
        }
        let (command, wanted) = {
            let config = lock(&self.config);
            let wanted = placed.bars.wanted(&config);
            (config.u16_at(offset::COMMAND), wanted)
        };
        // Nobody reaches the device while its decoders are off.
        placed.bars.leave(&wanted, link.bdf());
        let command = self.header.device_command(command);
        if placed.command != Some(command) {
            let at = offset::COMMAND as u64;
            link.write(region::CONFIG, at, &command.to_le_bytes(), 2);
            placed.command = Some(command);
        }
        placed.bars.arrive(&wanted, link.bdf());
    }

    /// Makes the device's interrupts follow configuration space, as [`Self::follow_decoding`] does
    /// BARs.
    fn follow_interrupts(&self) {
        let mut interrupts = lock(&self.shared.interrupts);
        interrupts.follow(&self.shared.link, &self.wanted_interrupts());
    }

    fn wanted_interrupts(&self) -> Wanted {
        self.header.wanted_interrupts(&lock(&self.config))
    }

    fn effects(&self, offset: usize, data: &[u8]) -> Effects {
        let written = offset..offset + data.len();
        let touches = |range: &Range<usize>| written.start < range.end && range.start < written.end;
        let command = offset::COMMAND..offset::STATUS;
        let bars = offset::BARS..offset::BARS + 4 * 6;
        let resets = self.header.offsets.resets.iter();
        Effects {
            decoding: touches(&command) || touches(&bars),
            interrupts: touches(&command) || self.interrupt_registers.iter().any(touches),
            reset: resets
                .filter_map(|(at, mask)| Some(data.get(at.checked_sub(offset)?)? & mask))
                .any(|bits| bits != 0),
        }
    }
}

impl Function for PassthroughFunction {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let offset = usize::from(offset);
        let link = &self.shared.link;
        data.fill(0xff);
        let length = data.len().min(SIZE.saturating_sub(offset));
        let inside = &mut data[..length];
        if !link.is_lost() {
            let config = lock(&self.config);
            config.read(offset, inside);
            self.header.filter.read(link, offset, inside);
        }
        // It may have become so on the way.
        if link.is_lost() {
            data.fill(0xff);
        }
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        let offset = usize::from(offset);
        let link = &self.shared.link;
        if link.is_lost() {
            return;
        }
        let data = &data[..data.len().min(SIZE.saturating_sub(offset))];
        {
            let mut config = lock(&self.config);
            config.write(offset, data);
            self.header.filter.write(link, offset, data);
        }
        let effects = self.effects(offset, data);
        if effects.decoding {
            self.follow_decoding();
        }
        if effects.interrupts {
            self.follow_interrupts();
        }
        if effects.reset
            && let Err(error) = self.reset()
        {
            // A refusal has been logged, a loss reported.
            log::debug!("{}: not reset: {error}", link.bdf());
        }
    }
}

impl Drop for PassthroughFunction {
    fn drop(&mut self) {
        lock(&self.shared.interrupts).turn_off(&self.shared.link);
    }
}

/// The BARs that the guest is shown, with their addresses.
fn shown_bars(
    device: &SharedDevice,
    facts: &DeviceFacts,
    addresses: &[Option<u64>],
) -> Result<Vec<(BarFacts, u64)>, FunctionError> {
    if facts.bars.len() != addresses.len() {
        return Err(FunctionError::Addresses {
            given: addresses.len(),
            bars: facts.bars.len(),
        });
    }
    let mut shown = Vec::new();
    for (bar, address) in facts.bars.iter().zip(addresses) {
        let size = device.region(bar.index.into()).size;
        if size == 0 || size > bar.size {
            return Err(FunctionError::Changed {
                index: bar.index,
                planned: bar.size,
                size,
            });
        }
        shown.extend(address.map(|address| (*bar, address)));
    }
    Ok(shown)
}

#[cfg(test)]
mod tests;
