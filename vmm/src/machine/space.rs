//! Where the BARs of functions answer: memory slots for what is mapped, buses for what is trapped.
#![expect(unsafe_code, reason = "gives the memory of devices to KVM")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use devices::bus::{Bus, BusDevice, InsertError};
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use pci::{AddressSpace, DmaArea, MappableArea, PlacedRegion, Region, Space};

use super::areas::{DeviceAreas, MappedRegion, Owner};
use super::notifications::{Notifications, Registered};
use super::view::MemoryView;
use crate::plan::GpaRange;

/// The smallest block that Linux takes as RAM, in bytes (SECTION_SIZE_BITS, with pages of 4 KiB).
const MEMORY_BLOCK: u64 = 128 << 20;

/// The address spaces of one machine.
#[derive(Clone)]
pub struct GuestSpace(Arc<Inner>);

struct Inner {
    vm: Arc<VmFd>,
    /// Weak, because the buses have the functions whose BARs are here.
    mmio: Weak<Bus>,
    pio: Weak<Bus>,
    view: Arc<MemoryView>,
    areas: Arc<DeviceAreas>,
    /// Where BARs may be: what host bridges pass on.
    windows: Vec<GpaRange>,
    notifications: Notifications,
    slots: Mutex<Slots>,
}

/// What a [`GuestSpace`] is made of.
pub struct SpaceParts {
    /// The VM.
    pub vm: Arc<VmFd>,
    /// Its memory bus.
    pub mmio: Weak<Bus>,
    /// Its I/O ports.
    pub pio: Weak<Bus>,
    /// What devices reach.
    pub view: Arc<MemoryView>,
    /// What is mapped of devices.
    pub areas: Arc<DeviceAreas>,
    /// Where memory BARs may be.
    pub windows: Vec<GpaRange>,
    /// Memory slots that RAM has.
    pub ram_slots: u32,
}

impl GuestSpace {
    /// Address spaces with nothing in them.
    pub fn new(parts: SpaceParts) -> Self {
        let SpaceParts {
            vm,
            mmio,
            pio,
            view,
            areas,
            windows,
            ram_slots,
        } = parts;
        Self(Arc::new(Inner {
            notifications: Notifications::new(Arc::clone(&vm) as _),
            vm,
            mmio,
            pio,
            view,
            areas,
            windows,
            slots: Mutex::new(Slots {
                next: ram_slots,
                free: Vec::new(),
            }),
        }))
    }

    /// The same for the machine's own functions, of which nothing is mapped.
    pub fn of_machine(&self) -> MachineSpace {
        MachineSpace(Arc::clone(&self.0))
    }

    /// The same for one device, which may have to be let go of. `has_nodes` is whether it has NUMA
    /// nodes: then its memory may become RAM of the guest.
    pub fn of(&self, owner: Owner, has_nodes: bool) -> FunctionSpace {
        FunctionSpace {
            space: Arc::clone(&self.0),
            owner,
            has_nodes,
            placed: Mutex::default(),
        }
    }
}

/// The address spaces of a machine, as functions change them that the machine itself emulates.
pub struct MachineSpace(Arc<Inner>);

impl AddressSpace for MachineSpace {
    fn add(&self, space: Space, region: Arc<dyn Region>) -> io::Result<Box<dyn PlacedRegion>> {
        // Mapped memory has an owner, who may lose it.
        if !region.mappable().is_empty() {
            let text = "memory of an emulated function cannot be mapped";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        let placed = Placed::new(&self.0, space, region, None, false);
        Ok(Box::new(Handle(Arc::new(placed))))
    }
}

/// The address spaces of a machine, as one device's function changes them.
pub struct FunctionSpace {
    space: Arc<Inner>,
    owner: Owner,
    has_nodes: bool,
    placed: Mutex<Vec<Weak<Placed>>>,
}

impl FunctionSpace {
    /// Takes the mapped registers of a lost device out of the guest: what is read there is what its
    /// function says, which is ones. What is memory stays memory, since a guest may have its own data
    /// there and access it in ways that cannot be trapped. `all` is whether none of it may be the
    /// device's any more: then that is zeros, and other devices do not reach it.
    pub fn let_go(&self, all: bool) {
        for placed in lock(&self.placed).iter().filter_map(Weak::upgrade) {
            placed.let_go(all);
        }
    }
}

impl AddressSpace for FunctionSpace {
    fn add(&self, space: Space, region: Arc<dyn Region>) -> io::Result<Box<dyn PlacedRegion>> {
        let mapping = match region.mappable() {
            [] => None,
            _ => Some(self.space.areas.map(&self.owner, &*region)?),
        };
        let placed = Placed::new(&self.space, space, region, mapping, self.has_nodes);
        let placed = Arc::new(placed);
        lock(&self.placed).push(Arc::downgrade(&placed));
        Ok(Box::new(Handle(placed)))
    }
}

/// A function's hold on a region.
struct Handle(Arc<Placed>);

impl PlacedRegion for Handle {
    fn place(&self, address: Option<u64>) -> io::Result<()> {
        self.0.place(address)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let place = lock(&self.0.place).take();
        if let Some(place) = place {
            self.0.leave(place);
        }
    }
}

/// Numbers of memory slots.
struct Slots {
    next: u32,
    free: Vec<u32>,
}

impl Slots {
    fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }
}

struct Placed {
    space: Arc<Inner>,
    has_nodes: bool,
    kind: Space,
    region: Arc<dyn Region>,
    /// Host addresses of its areas.
    mapping: Option<Arc<MappedRegion>>,
    place: Mutex<Option<Place>>,
}

/// Where a region answers.
struct Place {
    address: u64,
    /// Slots of the mapped areas, and whether devices reach them.
    slots: Vec<(u32, u64)>,
    /// Writes that are events.
    notifications: Option<Registered>,
}

struct Trapped(Arc<dyn Region>);

impl BusDevice for Trapped {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.write(offset, data);
    }
}

impl Placed {
    fn new(
        space: &Arc<Inner>,
        kind: Space,
        region: Arc<dyn Region>,
        mapping: Option<Arc<MappedRegion>>,
        has_nodes: bool,
    ) -> Self {
        Self {
            space: Arc::clone(space),
            has_nodes,
            kind,
            region,
            mapping,
            place: Mutex::new(None),
        }
    }

    fn place(&self, address: Option<u64>) -> io::Result<()> {
        let mut place = lock(&self.place);
        if place.as_ref().map(|place| place.address) == address {
            return Ok(());
        }
        if let Some(old) = place.take() {
            self.leave(old);
        }
        if let Some(address) = address {
            self.check(address)?;
            *place = Some(self.enter(address)?);
        }
        Ok(())
    }

    fn let_go(&self, all: bool) {
        let Some(mapping) = &self.mapping else {
            return;
        };
        let mut place = lock(&self.place);
        if let Some(place) = &mut *place {
            if self.region.is_prefetchable() {
                for (position, (_, gpa)) in place.slots.iter().enumerate() {
                    if all || mapping.is_gone(position) {
                        self.space.view.remove(*gpa);
                    }
                }
            } else {
                self.unmap(std::mem::take(&mut place.slots));
            }
        }
        if all {
            mapping.let_go();
        }
    }

    /// The bus, as long as the machine has it.
    fn bus(&self) -> Option<Arc<Bus>> {
        match self.kind {
            Space::Memory => self.space.mmio.upgrade(),
            Space::Io => self.space.pio.upgrade(),
        }
    }

    /// Memory that no host bridge passes on is not reached by it: RAM and the machine's own
    /// registers stay what they are wherever a guest puts a BAR.
    fn check(&self, address: u64) -> io::Result<()> {
        if self.kind == Space::Io {
            return Ok(());
        }
        let end = address.checked_add(self.region.size());
        let inside = |window: &GpaRange| {
            window.start <= address && end.is_some_and(|end| end <= window.end())
        };
        if self.space.windows.iter().any(inside) {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            format!("{address:#x} is outside the windows of PCI"),
        ))
    }

    /// Answers at `address`.
    fn enter(&self, address: u64) -> io::Result<Place> {
        let trapped = Arc::new(Trapped(Arc::clone(&self.region)));
        let bus = self.bus().ok_or(io::ErrorKind::NotConnected)?;
        let inserted = bus.insert(address, self.region.size(), trapped);
        inserted.map_err(|error: InsertError| io::Error::new(io::ErrorKind::AddrInUse, error))?;
        let mut place = Place {
            address,
            slots: Vec::new(),
            notifications: None,
        };
        if let Err(error) = self.map(&mut place) {
            self.leave(place);
            return Err(error);
        }
        // Last, so that what is not an event yet is trapped.
        let list = self.region.notifications();
        if !list.is_empty() {
            let notifications = &self.space.notifications;
            place.notifications = Some(notifications.register(self.kind, address, list));
        }
        Ok(place)
    }

    /// Maps what can be mapped of a region into the guest, as far as that works.
    fn map(&self, place: &mut Place) -> io::Result<()> {
        let address = place.address;
        let Some(mapping) = &self.mapping else {
            return Ok(());
        };
        mapping.set_place(Some(address));
        for area in self.region.mappable() {
            let slot = lock(&self.space.slots).take();
            let gpa = address + area.offset;
            place.slots.push((slot, gpa));
            let host_address = mapping.address() as u64 + area.offset;
            self.set_slot(slot, gpa, Some((area, host_address)))?;
            let may_be_ram = self.has_nodes && area.size >= MEMORY_BLOCK;
            let area = DmaArea {
                gpa,
                size: area.size,
                host_address: host_address as usize,
                file: shareable(&area.file).then(|| (Arc::clone(&area.file), area.file_offset)),
                writable: area.writable,
            };
            self.space.view.add(area, may_be_ram);
        }
        Ok(())
    }

    /// Answers nowhere any more.
    fn leave(&self, place: Place) {
        let Place {
            address,
            slots,
            notifications,
        } = place;
        drop(notifications);
        if let Some(bus) = self.bus() {
            bus.remove(address);
        }
        self.unmap(slots);
        if let Some(mapping) = &self.mapping {
            mapping.set_place(None);
        }
    }

    /// Takes mapped areas out of the guest; accesses are trapped then, if anything answers there.
    fn unmap(&self, slots: Vec<(u32, u64)>) {
        for (slot, gpa) in slots {
            self.space.view.remove(gpa);
            match self.set_slot(slot, gpa, None) {
                Ok(()) => lock(&self.space.slots).free.push(slot),
                // Its number stays in use.
                Err(error) => log::error!("KVM keeps the memory of a device at {gpa:#x}: {error}"),
            }
        }
    }

    fn set_slot(&self, slot: u32, gpa: u64, area: Option<(&MappableArea, u64)>) -> io::Result<()> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: match area {
                Some((area, _)) if !area.writable => KVM_MEM_READONLY,
                _ => 0,
            },
            guest_phys_addr: gpa,
            memory_size: area.map_or(0, |(area, _)| area.size),
            userspace_addr: area.map_or(0, |(_, address)| address),
        };
        // SAFETY: the mapping is valid for the whole of the area and goes only after the slot:
        // `Placed` holds it, and its `Handle` leaves its place before it drops it.
        unsafe { self.space.vm.set_user_memory_region(region) }.map_err(io::Error::from)
    }
}

/// Whether another process may be given the file: memory files hold memory, while a descriptor of a
/// device is power over the device.
fn shareable(file: &Arc<OwnedFd>) -> bool {
    let file = file.as_fd().try_clone_to_owned().map(std::fs::File::from);
    file.and_then(|file| file.metadata())
        .is_ok_and(|metadata| metadata.is_file())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// A descriptor of a VFIO device is one of a kind of file that is no regular one.
    #[test]
    fn only_memory_files_are_given_to_other_processes() {
        let memory = tempfile::tempfile().unwrap();
        assert!(shareable(&Arc::new(memory.into())));
        let device = File::open("/dev/null").unwrap();
        assert!(!shareable(&Arc::new(device.into())));
        let (pipe, _writer) = io::pipe().unwrap();
        assert!(!shareable(&Arc::new(pipe.into())));
    }
}
