//! A function that this process itself emulates: configuration space, BARs with a device's registers
//! behind them, and MSI-X.
//!
//! BARs follow what the guest writes to their registers, as those of passed-through functions do.
//! MSI-X is dealt with here (`interrupts`, `region`), so a device has its own registers alone.
//!
//! Locks are taken in this order, and the last is free whenever the machine is asked to place a
//! region, because vCPUs that access one may need it: `placement`, `interrupts`, `config`. A hook is
//! called with `config` held, and whatever a device does to send an interrupt or to learn whether it
//! may needs none of them.

mod error;
mod hook;
mod interrupts;
mod region;

use std::ops::Range;
use std::sync::{Arc, Mutex};

use crate::config_space::{Bar, BarKind, ConfigSpace, Identity, SIZE, offset};
use crate::locks::lock;
use crate::msix::{self, MsixPlaces, Place};
use crate::placement::Placement;
use crate::{AddressSpace, Bdf, Function, MsiSource, Region};
use hook::Hook;
use interrupts::{Interrupts, Wanted};
use region::MsixRegion;

pub use error::EmulatedError;
pub use hook::ConfigHook;
pub use interrupts::{BusMaster, MsixVectors};

/// An emulated function, before it is connected.
pub struct EmulatedParts<'a> {
    /// What it is.
    pub identity: Identity,
    /// Where it is.
    pub bdf: Bdf,
    /// Its BARs.
    pub bars: Vec<EmulatedBar>,
    /// Its capabilities, but for MSI-X, which comes behind them. They are placed in this order from
    /// offset 0x40 on, each at the next multiple of 4.
    pub capabilities: Vec<Capability>,
    /// MSI-X; without it the function has no interrupts.
    pub msix: Option<MsixParts>,
    /// Where the BARs appear.
    pub space: &'a dyn AddressSpace,
    /// Where MSI-X come from.
    pub msi: Arc<dyn MsiSource>,
    /// What registers of capabilities do.
    pub hook: Option<Arc<dyn ConfigHook>>,
}

/// A BAR of an emulated function.
#[derive(Clone)]
pub struct EmulatedBar {
    /// Number of its first register, 0 to 5.
    pub index: u8,
    /// What it decodes.
    pub kind: BarKind,
    /// Where firmware has put it: guest-physical, or an I/O port.
    pub address: u64,
    /// What answers there; it is as large as the BAR.
    pub region: Arc<dyn Region>,
}

/// A capability of an emulated function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its id.
    pub id: u8,
    /// Its bytes behind the header, which has two.
    pub body: Vec<u8>,
    /// Bits of `body` that a guest may change; bytes that are not there are read-only.
    pub writable: Vec<u8>,
}

/// MSI-X of an emulated function. What lies in the BAR at these places is not the region's, and nothing
/// of that region is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixParts {
    /// How many vectors, 1 to 2048.
    pub vectors: u16,
    /// The memory BAR that table and pending bits are in.
    pub bar: u8,
    /// Where the table is in it, 16 bytes for each vector; a multiple of 8.
    pub table: u64,
    /// Where the pending bits are, 8 bytes for each 64 vectors; a multiple of 8.
    pub pending: u64,
}

/// An emulated function on its bus.
pub struct EmulatedFunction {
    bdf: Bdf,
    /// Configuration space as it is at the start.
    initial: ConfigSpace,
    /// Offsets of the capabilities that it was given.
    capabilities: Vec<usize>,
    /// Offset of message control of MSI-X.
    msix_control: Option<usize>,
    hook: Option<Hook>,
    bus_master: Arc<BusMaster>,
    vectors: Arc<MsixVectors>,
    placement: Mutex<Placement>,
    interrupts: Arc<Mutex<Interrupts>>,
    config: Mutex<ConfigSpace>,
}

impl EmulatedFunction {
    /// Connects a function, whose decoders are off and whose BARs are where firmware has put them.
    ///
    /// # Errors
    /// Its parts do not go together, or the machine does not take a BAR.
    pub fn new(parts: EmulatedParts) -> Result<Arc<Self>, EmulatedError> {
        let EmulatedParts {
            identity,
            bdf,
            bars,
            capabilities,
            msix,
            space,
            msi,
            hook,
        } = parts;
        let mut initial = ConfigSpace::new(&identity);
        add_bars(&mut initial, &bars)?;
        let mut offsets = Vec::new();
        for Capability { id, body, writable } in &capabilities {
            offsets.push(initial.add_capability(*id, body, writable)?);
        }
        let hook = hook
            .map(|hook| Hook::new(hook, &capabilities, &offsets))
            .transpose()?;
        let places = msix
            .map(|msix| msix_places(&msix, &bars).map(Arc::new))
            .transpose()?;
        let count = msix.map_or(0, |msix| msix.vectors);
        let mut msix_control = None;
        if let Some(places) = &places {
            let (body, writable) = places.capability(count);
            let at = initial.add_capability(msix::ID, &body, &writable)?;
            msix_control = Some(at + msix::CONTROL);
        }
        let vectors = Arc::new(MsixVectors::new(count));
        let interrupts = Interrupts::new(msi, bdf, Arc::clone(&vectors));
        let interrupts = Arc::new(Mutex::new(interrupts));
        let mut placement = Placement::default();
        for EmulatedBar {
            index,
            kind,
            address: _,
            region,
        } in bars
        {
            let region = match &places {
                Some(places) if places.in_bar(index).next().is_some() => Arc::new(MsixRegion {
                    region,
                    bar: index,
                    places: Arc::clone(places),
                    interrupts: Arc::clone(&interrupts),
                }),
                _ => region,
            };
            placement
                .add(index, kind, region, space)
                .map_err(|source| EmulatedError::Region { index, source })?;
        }
        Ok(Arc::new(Self {
            bdf,
            capabilities: offsets,
            msix_control,
            hook,
            bus_master: Arc::default(),
            vectors,
            placement: Mutex::new(placement),
            interrupts,
            config: Mutex::new(initial.clone()),
            initial,
        }))
    }

    /// Its interrupts, for whoever sends them. They do not hold the function.
    pub fn interrupts(&self) -> Arc<MsixVectors> {
        Arc::clone(&self.vectors)
    }

    /// Whether the guest lets the function reach memory, which it must not do otherwise.
    pub fn is_bus_master(&self) -> bool {
        self.bus_master.is_on()
    }

    /// The same for who is not to hold the function, such as the device behind it.
    pub fn bus_master(&self) -> Arc<BusMaster> {
        Arc::clone(&self.bus_master)
    }

    /// Offset in configuration space of a capability, by its position in
    /// [`EmulatedParts::capabilities`]; 0, which is none, for others.
    pub fn capability_offset(&self, nth: usize) -> usize {
        self.capabilities.get(nth).copied().unwrap_or_default()
    }

    /// Puts the function back to how it was at the start: decoders and MSI-X off, BARs where firmware
    /// has put them. The device behind it is not told. Not to be called from within an access to a
    /// region or a hook.
    pub fn reset(&self) {
        let mut placement = lock(&self.placement);
        {
            let mut config = lock(&self.config);
            *config = self.initial.clone();
            self.bus_master.follow(&config);
        }
        self.place(&mut placement);
        let mut interrupts = lock(&self.interrupts);
        interrupts.reset();
        // Others may have written meanwhile.
        interrupts.follow(&self.wanted_interrupts());
    }

    /// Makes BARs follow configuration space. Whoever writes calls this behind its write, so the last
    /// one to come here sees all writes.
    fn follow_decoding(&self) {
        self.place(&mut lock(&self.placement));
    }

    fn place(&self, placement: &mut Placement) {
        let wanted = placement.wanted(&lock(&self.config));
        placement.leave(&wanted, self.bdf);
        placement.arrive(&wanted, self.bdf);
    }

    /// Makes interrupts follow configuration space, as [`Self::follow_decoding`] does BARs.
    fn follow_interrupts(&self) {
        let mut interrupts = lock(&self.interrupts);
        interrupts.follow(&self.wanted_interrupts());
    }

    fn wanted_interrupts(&self) -> Wanted {
        let config = lock(&self.config);
        Wanted {
            control: self.msix_control.map_or(0, |at| config.u16_at(at)),
            bus_master: config.is_bus_master(),
        }
    }
}

impl Function for EmulatedFunction {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let offset = usize::from(offset);
        let mut config = lock(&self.config);
        if let Some(hook) = &self.hook {
            hook.read(&mut config, offset..offset + data.len());
        }
        config.read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        let offset = usize::from(offset);
        let data = &data[..data.len().min(SIZE.saturating_sub(offset))];
        let written = offset..offset + data.len();
        {
            let mut config = lock(&self.config);
            config.write(offset, data);
            self.bus_master.follow(&config);
            if let Some(hook) = &self.hook {
                hook.written(&mut config, written.clone());
            }
        }
        let touches = |range: Range<usize>| written.start < range.end && range.start < written.end;
        let is_command = touches(offset::COMMAND..offset::STATUS);
        if is_command || touches(offset::BARS..offset::BARS + 4 * 6) {
            self.follow_decoding();
        }
        if is_command || self.msix_control.is_some_and(|at| touches(at..at + 2)) {
            self.follow_interrupts();
        }
    }
}

fn add_bars(space: &mut ConfigSpace, bars: &[EmulatedBar]) -> Result<(), EmulatedError> {
    for EmulatedBar {
        index,
        kind,
        address,
        region,
    } in bars
    {
        let (index, kind, address) = (*index, *kind, *address);
        let size = region.size();
        let register = usize::from(index);
        space.add_bar(register, Bar { kind, size })?;
        space.set_bar_address(register, address);
        if space.bar_address(register) != Some(address) {
            return Err(EmulatedError::Address {
                index,
                address,
                size,
            });
        }
    }
    Ok(())
}

/// Where table and pending bits are, which have to be inside their BAR and apart.
fn msix_places(msix: &MsixParts, bars: &[EmulatedBar]) -> Result<MsixPlaces, EmulatedError> {
    let MsixParts {
        vectors,
        bar,
        table,
        pending,
    } = *msix;
    if !(1..=msix::MOST).contains(&vectors) {
        return Err(EmulatedError::Vectors { vectors });
    }
    let size = bars
        .iter()
        .find(|there| there.index == bar && there.kind != BarKind::Io)
        .map(|there| there.region.size())
        .ok_or(EmulatedError::MsixBar { bar })?;
    let place = |start: u64, length: u64| {
        let end = start.checked_add(length)?;
        // The capability has 32 bits for an offset.
        let fits = end <= size && u32::try_from(start).is_ok() && start.is_multiple_of(8);
        fits.then_some(Place {
            bar,
            range: start..end,
        })
    };
    let table_place = place(table, msix::table_size(vectors));
    let pending_place = place(pending, msix::pending_size(vectors));
    let places = table_place
        .zip(pending_place)
        .map(|(table, pending)| MsixPlaces { table, pending });
    places
        .filter(|places| !places.overlap())
        .ok_or(EmulatedError::MsixPlaces {
            vectors,
            bar,
            size,
            table,
            pending,
        })
}
