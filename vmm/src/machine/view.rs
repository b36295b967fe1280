//! Guest memory as devices reach it: RAM, and the memory of devices that is mapped into the guest.
//!
//! A guest may use a device's memory as it uses RAM, for buffers of other devices too. So whoever
//! reaches memory by itself is told of both, from one place.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pci::{DmaArea, DmaTarget};

use crate::passthrough::{find_loss, is_same};

/// The memory, and who has been told of it.
///
/// Dropping it takes all memory away from all of them.
pub struct MemoryView(Mutex<Inner>);

/// What a device reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// RAM, and the memory of devices.
    All,
    /// RAM alone.
    Ram,
}

struct Inner {
    /// It stays.
    ram: Vec<DmaArea>,
    /// By first address: they come and go.
    areas: BTreeMap<u64, DmaArea>,
    targets: Vec<Target>,
}

struct Target {
    device: Arc<dyn DmaTarget>,
    reach: Reach,
    /// First addresses and sizes of what it has.
    mapped: BTreeMap<u64, u64>,
}

impl Target {
    fn map(&mut self, area: &DmaArea) -> io::Result<()> {
        self.device.map(area)?;
        self.mapped.insert(area.gpa, area.size);
        Ok(())
    }

    fn unmap(&mut self, gpa: u64) {
        if let Some(size) = self.mapped.remove(&gpa)
            && let Err(error) = self.device.unmap(gpa, size)
        {
            // That a device is lost was reported; one that is not will be found out at the next
            // mapping there.
            let level = match find_loss(&error) {
                Some(_) => log::Level::Debug,
                None => log::Level::Warn,
            };
            log::log!(
                level,
                "a device keeps its access to {size:#x} bytes at {gpa:#x}: {error}"
            );
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        while let Some((&gpa, _)) = self.mapped.first_key_value() {
            self.unmap(gpa);
        }
    }
}

impl MemoryView {
    /// RAM alone.
    pub fn new(ram: Vec<DmaArea>) -> Self {
        Self(Mutex::new(Inner {
            ram,
            areas: BTreeMap::new(),
            targets: Vec::new(),
        }))
    }

    /// Lets a device reach memory, now and later.
    ///
    /// # Errors
    /// It cannot reach some of what there is. It then reaches nothing.
    pub fn add_target(&self, device: Arc<dyn DmaTarget>, reach: Reach) -> io::Result<()> {
        let mut inner = self.lock();
        let mapped = BTreeMap::new();
        let mut target = Target {
            device,
            reach,
            mapped,
        };
        inner.ram.iter().try_for_each(|area| target.map(area))?;
        if reach == Reach::All {
            inner.areas.values().try_for_each(|area| target.map(area))?;
        }
        inner.targets.push(target);
        Ok(())
    }

    /// Takes all memory away from a device.
    pub fn remove_target(&self, device: &Arc<dyn DmaTarget>) {
        let mut inner = self.lock();
        inner
            .targets
            .retain(|target| !is_same(&target.device, device));
    }

    /// Adds memory of a device. Others that cannot reach it do without, which matters if it `may_be_ram`:
    /// then a guest has buffers there that they lose the data of.
    pub fn add(&self, area: DmaArea, may_be_ram: bool) {
        let mut inner = self.lock();
        let DmaArea { gpa, size, .. } = area;
        let level = match may_be_ram {
            true => log::Level::Warn,
            false => log::Level::Info,
        };
        let targets = inner.targets.iter_mut();
        for target in targets.filter(|target| target.reach == Reach::All) {
            if let Err(error) = target.map(&area) {
                log::log!(
                    level,
                    "a device cannot reach the {size:#x} bytes of another at {gpa:#x}{}: {error}",
                    match may_be_ram {
                        true => ", which the guest may use as RAM",
                        false => "",
                    }
                );
            }
        }
        inner.areas.insert(gpa, area);
    }

    /// Takes memory away that begins at `gpa`.
    pub fn remove(&self, gpa: u64) {
        let mut inner = self.lock();
        inner
            .targets
            .iter_mut()
            .for_each(|target| target.unmap(gpa));
        inner.areas.remove(&gpa);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Remembers what it has, and refuses what lies at one address.
    #[derive(Default)]
    struct Device {
        mapped: Mutex<Vec<(u64, u64)>>,
        refuses: Option<u64>,
    }

    impl DmaTarget for Device {
        fn map(&self, area: &DmaArea) -> io::Result<()> {
            if self.refuses == Some(area.gpa) {
                return Err(io::ErrorKind::Unsupported.into());
            }
            self.mapped.lock().unwrap().push((area.gpa, area.size));
            Ok(())
        }

        fn unmap(&self, gpa: u64, size: u64) -> io::Result<()> {
            let mut mapped = self.mapped.lock().unwrap();
            let at = mapped.iter().position(|area| *area == (gpa, size));
            mapped.remove(at.expect("it was mapped"));
            Ok(())
        }
    }

    impl Device {
        fn refusing(gpa: u64) -> Arc<Self> {
            Arc::new(Self {
                refuses: Some(gpa),
                ..Self::default()
            })
        }

        fn has(&self) -> Vec<(u64, u64)> {
            self.mapped.lock().unwrap().clone()
        }
    }

    fn area(gpa: u64, size: u64) -> DmaArea {
        DmaArea {
            gpa,
            size,
            host_address: 0,
            file: None,
            writable: true,
        }
    }

    #[test]
    fn devices_reach_ram_and_what_comes_and_goes() {
        let view = MemoryView::new(vec![area(0, 0x1000), area(0x10000, 0x2000)]);
        let (early, late) = (Arc::new(Device::default()), Arc::new(Device::default()));
        view.add_target(early.clone(), Reach::All).unwrap();
        view.add(area(0x8000, 0x1000), false);
        view.add_target(late.clone(), Reach::All).unwrap();
        assert_eq!(
            late.has(),
            [(0, 0x1000), (0x10000, 0x2000), (0x8000, 0x1000)]
        );
        view.remove(0x8000);
        for device in [&early, &late] {
            assert_eq!(device.has(), [(0, 0x1000), (0x10000, 0x2000)]);
        }
        drop(view);
        assert_eq!((early.has(), late.has()), (vec![], vec![]));
    }

    #[test]
    fn a_device_that_is_taken_away_reaches_nothing() {
        let view = MemoryView::new(vec![area(0, 0x1000)]);
        let devices = [Arc::new(Device::default()), Arc::new(Device::default())];
        for device in &devices {
            view.add_target(device.clone(), Reach::All).unwrap();
        }
        let first: Arc<dyn DmaTarget> = devices[0].clone();
        view.remove_target(&first);
        view.add(area(0x8000, 0x1000), false);
        assert_eq!(devices[0].has(), []);
        assert_eq!(devices[1].has(), [(0, 0x1000), (0x8000, 0x1000)]);
    }

    #[test]
    fn a_device_that_cannot_reach_ram_reaches_nothing() {
        let view = MemoryView::new(vec![area(0, 0x1000), area(0x10000, 0x2000)]);
        let device = Device::refusing(0x10000);
        view.add_target(device.clone(), Reach::All).unwrap_err();
        assert_eq!(device.has(), []);
    }

    #[test]
    fn a_device_may_do_without_the_memory_of_others() {
        let view = MemoryView::new(vec![area(0, 0x1000)]);
        let device = Device::refusing(0x8000);
        view.add_target(device.clone(), Reach::All).unwrap();
        view.add(area(0x8000, 0x1000), false);
        view.remove(0x8000);
        assert_eq!(device.has(), [(0, 0x1000)]);
    }

    #[test]
    fn a_device_that_is_kept_from_others_reaches_ram_alone() {
        let view = MemoryView::new(vec![area(0, 0x1000)]);
        let (all, early, late) = (
            Device::refusing(1),
            Device::refusing(1),
            Device::refusing(1),
        );
        view.add_target(all.clone(), Reach::All).unwrap();
        view.add_target(early.clone(), Reach::Ram).unwrap();
        view.add(area(0x8000, 0x1000), true);
        view.add_target(late.clone(), Reach::Ram).unwrap();
        assert_eq!(all.has(), [(0, 0x1000), (0x8000, 0x1000)]);
        assert_eq!(
            (early.has(), late.has()),
            (vec![(0, 0x1000)], vec![(0, 0x1000)])
        );
        view.remove(0x8000);
        assert_eq!(all.has(), [(0, 0x1000)]);
        assert_eq!(early.has(), [(0, 0x1000)]);
    }
}
