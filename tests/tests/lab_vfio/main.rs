//! VFIO with real drivers, IOMMUs and devices, without a guest.

mod owners;

use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pci::device::{Device, DeviceError, IrqKind, region};
use pci::vfio::{Container, OpenError, VfioDevice};
use pci::{DmaArea, DmaTarget, MappableArea};
use tests::passthrough::{HostDevice, PassedThrough};
use vm_memory::mmap::MmapRegion;
use vm_memory::{Bytes, FileOffset, VolatileMemory};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The command register and its bits (PCI 3.0, section 6.2.2).
const COMMAND: u64 = 4;
const MEMORY: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;

/// How long something may take that happens, and how long nothing is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);

fn open(container: &Container, device: HostDevice) -> Result<VfioDevice> {
    let device = container.open_device(&device.path()?)?;
    device.write(
        region::CONFIG,
        COMMAND,
        &(MEMORY | BUS_MASTER).to_le_bytes(),
    )?;
    Ok(device)
}

fn read_u32(device: &VfioDevice, region: u32, offset: u64) -> Result<u32> {
    let mut data = [0; 4];
    device.read(region, offset, &mut data)?;
    Ok(u32::from_le_bytes(data))
}

fn write_u32(device: &VfioDevice, region: u32, offset: u64, value: u32) -> Result<()> {
    Ok(device.write(region, offset, &value.to_le_bytes())?)
}

fn event() -> Result<EventFd> {
    Ok(EventFd::new(EFD_NONBLOCK)?)
}

/// Waits until an event is written, `PATIENCE` at most.
fn arrives(event: &EventFd) -> bool {
    arrives_within(event, PATIENCE)
}

fn arrives_within(event: &EventFd, time: Duration) -> bool {
    let start = Instant::now();
    loop {
        if event.read().is_ok() {
            return true;
        }
        if start.elapsed() > time {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Guest memory: pages of this process.
struct Memory(MmapRegion);

impl Memory {
    fn new(size: usize) -> Result<Self> {
        Ok(Self(MmapRegion::new(size)?))
    }

    fn area(&self, gpa: u64, writable: bool) -> DmaArea {
        DmaArea {
            gpa,
            size: self.0.size() as u64,
            host_address: self.0.as_ptr() as usize,
            file: None,
            writable,
        }
    }

    fn fill(&self, range: Range<usize>, byte: u8) -> Result<()> {
        let bytes = vec![byte; range.len()];
        Ok(self
            .0
            .as_volatile_slice()
            .write_slice(&bytes, range.start)?)
    }

    fn is_all(&self, range: Range<usize>, byte: u8) -> Result<bool> {
        let mut bytes = vec![0; range.len()];
        self.0
            .as_volatile_slice()
            .read_slice(&mut bytes, range.start)?;
        Ok(bytes.iter().all(|read| *read == byte))
    }
}

/// Registers of the teaching device (QEMU, docs/specs/edu.rst), all in BAR 0.
struct Edu(VfioDevice);

impl Edu {
    const ID: u64 = 0x00;
    const IRQ_RAISE: u64 = 0x60;
    const IRQ_ACK: u64 = 0x64;
    const DMA_SOURCE: u64 = 0x80;
    const DMA_DESTINATION: u64 = 0x88;
    const DMA_COUNT: u64 = 0x90;
    const DMA_COMMAND: u64 = 0x98;
    /// Its own memory as DMA sees it: one page.
    const BUFFER: u64 = 0x40000;

    fn open(container: &Container) -> Result<Self> {
        let edu = Self(open(container, HostDevice::Edu)?);
        ensure!(read_u32(&edu.0, 0, Self::ID)? & 0xff == 0xed);
        Ok(edu)
    }

    fn raise(&self) -> Result<()> {
        write_u32(&self.0, 0, Self::IRQ_RAISE, 1)
    }

    fn acknowledge(&self) -> Result<()> {
        write_u32(&self.0, 0, Self::IRQ_ACK, 1)
    }

    fn copy(&self, source: u64, destination: u64, count: u64, direction: u32) -> Result<()> {
        for (register, value) in [
            (Self::DMA_SOURCE, source),
            (Self::DMA_DESTINATION, destination),
            (Self::DMA_COUNT, count),
        ] {
            self.0.write(0, register, &value.to_le_bytes())?;
        }
        write_u32(&self.0, 0, Self::DMA_COMMAND, direction | 1)?;
        let start = Instant::now();
        while read_u32(&self.0, 0, Self::DMA_COMMAND)? & 1 != 0 {
            ensure!(start.elapsed() < PATIENCE, "DMA never ends");
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Copies guest memory to guest memory.
    fn copy_through(&self, from: u64, to: u64, count: u64) -> Result<()> {
        self.copy(from, Self::BUFFER, count, 0)?;
        self.copy(Self::BUFFER, to, count, 2)
    }
}

#[test]
fn a_disk_says_what_it_is() -> Result<()> {
    let _host = PassedThrough::take(&[HostDevice::Nvme])?;
    let container = Container::new()?;
    let nvme = open(&container, HostDevice::Nvme)?;
    assert_eq!(nvme.driver(), "vfio-pci");
    assert_eq!(read_u32(&nvme, region::CONFIG, 0)?, 0x0010_1b36);
    // A mass storage controller, non-volatile memory, NVM Express.
    assert_eq!(read_u32(&nvme, region::CONFIG, 8)? >> 8, 0x01_08_02);

    let bar = nvme.region(0);
    assert!(bar.readable && bar.writable && !bar.sparse);
    assert_eq!(bar.size, 0x4000);
    assert_eq!(bar.mappable.len(), 1);
    assert_eq!(bar.mappable[0].size, bar.size);
    for absent in [1, 5, 8, 9, u32::MAX] {
        assert_eq!(nvme.region(absent).size, 0, "region {absent}");
    }
    assert_eq!(nvme.region(region::CONFIG).size, 4096);
    assert!(nvme.region(region::CONFIG).mappable.is_empty());
    // Version 1.x, and 1 again where it is mapped (NVM Express 1.4, section 3.1.2).
    assert_eq!(read_u32(&nvme, 0, 8)? >> 16, 1);
    assert_eq!(map(&bar.mappable[0])?.load::<u32>(8)? >> 16, 1);

    let refused = |result| matches!(result, Err(DeviceError::Refused(_)));
    let mut data = [0; 4];
    assert!(refused(nvme.read(0, 0x3ffe, &mut data)));
    assert!(refused(nvme.read(0, u64::MAX, &mut data)));
    assert!(refused(nvme.write(1, 0, &data)));
    assert!(refused(nvme.write(9, 0, &data)));
    Ok(())
}

#[test]
fn registers_of_a_device_that_is_off_are_refused() -> Result<()> {
    let _host = PassedThrough::take(&[HostDevice::Nvme])?;
    let nvme = open(&Container::new()?, HostDevice::Nvme)?;
    nvme.write(region::CONFIG, COMMAND, &[0, 0])?;
    let result = nvme.read(0, 8, &mut [0; 4]);
    assert!(matches!(result, Err(DeviceError::Refused(_))), "{result:?}");
    Ok(())
}

#[test]
fn memory_is_mapped_and_unmapped() -> Result<()> {
    let _host = PassedThrough::take(&[HostDevice::Nvme])?;
    let container = Container::new()?;
    let _nvme = open(&container, HostDevice::Nvme)?;
    let memory = Memory::new(2 << 20)?;
    let area = memory.area(1 << 32, true);
    container.map(&area)?;
    let error = container.map(&area).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(error.to_string().contains("something else is mapped there"));
    let part = container.unmap(area.gpa, area.size / 2).unwrap_err();
    assert!(part.to_string().contains("was not mapped"), "{part}");
    container.unmap(area.gpa, area.size)?;
    assert!(container.unmap(area.gpa, area.size).is_err());

    let beyond = container.map(&memory.area(1 << 60, true)).unwrap_err();
    let text = beyond.to_string();
    assert!(
        text.contains("0x1000000000000000-0x10000000001fffff"),
        "{text}"
    );
    // Where messages to the interrupt controller go, on SMMUs as Linux has it and on x86.
    let messages: u64 = match cfg!(target_arch = "aarch64") {
        true => 0x800_0000,
        false => 0xfee0_0000,
    };
    assert!(text.contains(&format!("-{:#x}, ", messages - 1)), "{text}");
    assert!(container.map(&memory.area(messages, true)).is_err());
    let odd = container.map(&memory.area(0x800, true)).unwrap_err();
    assert!(odd.to_string().contains("pages of 0x1000 bytes"), "{odd}");
    Ok(())
}

#[test]
fn two_devices_share_a_container() -> Result<()> {
    let devices = [HostDevice::Nvme, HostDevice::NetworkCard];
    let _host = PassedThrough::take(&devices)?;
    let container = Container::new()?;
    assert!(container.groups().is_empty());
    let nvme = open(&container, HostDevice::Nvme)?;
    let card = open(&container, HostDevice::NetworkCard)?;
    assert_eq!(read_u32(&nvme, region::CONFIG, 0)?, 0x0010_1b36);
    assert_eq!(read_u32(&card, region::CONFIG, 0)?, 0x10c9_8086);
    assert_eq!(container.groups().len(), 2);

    let error = open(&container, HostDevice::Nvme).unwrap_err();
    let twice = error.downcast_ref::<OpenError>();
    assert!(
        matches!(twice, Some(OpenError::AlreadyOpen { .. })),
        "{error:#}"
    );
    let elsewhere = Container::new()?;
    let error = open(&elsewhere, HostDevice::Nvme).unwrap_err();
    let busy = error.downcast_ref::<OpenError>();
    assert!(
        matches!(busy, Some(OpenError::GroupBusy { .. })),
        "{error:#}"
    );

    drop(nvme);
    assert_eq!(container.groups().len(), 1);
    open(&elsewhere, HostDevice::Nvme)?;
    Ok(())
}

fn map(area: &MappableArea) -> Result<Mapped> {
    let file = File::from(area.file.try_clone()?);
    let region =
        MmapRegion::from_file(FileOffset::new(file, area.file_offset), area.size as usize)?;
    Ok(Mapped(region))
}

/// A part of a device in this process.
struct Mapped(MmapRegion);

impl Mapped {
    fn load<T: vm_memory::AtomicAccess>(&self, offset: usize) -> Result<T> {
        Ok(self.0.as_volatile_slice().load(offset, Ordering::Relaxed)?)
    }

    fn store<T: vm_memory::AtomicAccess>(&self, value: T, offset: usize) -> Result<()> {
        let slice = self.0.as_volatile_slice();
        Ok(slice.store(value, offset, Ordering::Relaxed)?)
    }
}

#[test]
fn a_large_bar_is_the_same_mapped_and_not() -> Result<()> {
    let _host = PassedThrough::take(&[HostDevice::SharedMemory])?;
    let container = Container::new()?;
    let device = open(&container, HostDevice::SharedMemory)?;
    let bar = device.region(2);
    assert_eq!(bar.size, 128 << 20);
    assert_eq!(bar.mappable.len(), 1);
    assert_eq!(bar.mappable[0].size, bar.size);
    let mapped = map(&bar.mappable[0])?;
    for offset in [0, 0x1008, (128 << 20) - 8] {
        let value = 0x0123_4567_89ab_cdef_u64 ^ offset;
        device.write(2, offset, &value.to_ne_bytes())?;
        assert_eq!(mapped.load::<u64>(offset as usize)?, value);
        mapped.store(!value, offset as usize)?;
        let mut data = [0; 8];
        device.read(2, offset, &mut data)?;
        assert_eq!(u64::from_ne_bytes(data), !value);
    }
    // Smaller than a page: trapped.
    assert_eq!(device.region(0).size, 0x100);
    assert!(device.region(0).mappable.is_empty());
    Ok(())
}

#[test]
fn devices_of_a_group_are_reset_together() -> Result<()> {
    let _host = PassedThrough::take(&[HostDevice::SharedMemory, HostDevice::Edu])?;
    let container = Container::new()?;
    let memory = open(&container, HostDevice::SharedMemory)?;
    let edu = Edu::open(&container)?;
    assert_eq!(container.groups().len(), 1);
    // The interrupt mask.
    write_u32(&memory, 0, 0, 5)?;
    assert_eq!(read_u32(&memory, 0, 0)?, 5);
    assert!(memory.can_reset() && edu.0.can_reset());
    edu.0.reset()?;
    memory.write(region::CONFIG, COMMAND, &MEMORY.to_le_bytes())?;
    assert_eq!(read_u32(&memory, 0, 0)?, 0);

    // The group is one device's as long as the other one is there.
    drop(edu);
    assert_eq!(container.groups().len(), 1);
    drop(memory);
    assert!(container.groups().is_empty());
    Ok(())
}

#[test]
fn dma_reaches_what_is_mapped_and_nothing_else() -> Result<()> {
    const A: u64 = 0x100_0000;
    const B: u64 = 0x200_0000;
    let _host = PassedThrough::take(&[HostDevice::Edu])?;
    let container = Container::new()?;
    let source = Memory::new(0x4000)?;
    let target = Memory::new(0x4000)?;
    // Before there is a device, and so an IOMMU.
    container.map(&source.area(A, false))?;
    container.map(&target.area(B, true))?;
    let edu = Edu::open(&container)?;

    source.fill(0..0x4000, 0x5a)?;
    edu.copy_through(A + 0x1000, B + 0x2000, 0x100)?;
    assert!(target.is_all(0x2000..0x2100, 0x5a)?);
    assert!(target.is_all(0..0x2000, 0)? && target.is_all(0x2100..0x4000, 0)?);

    // Devices may not write to the source.
    target.fill(0..0x4000, 0x11)?;
    edu.copy_through(B, A, 0x100)?;
    assert!(source.is_all(0..0x4000, 0x5a)?);

    // All mappings go with the last group of a container, and come back with the next one.
    drop(edu);
    assert!(container.groups().is_empty());
    container.unmap(A, 0x4000)?;
    let other = Memory::new(0x4000)?;
    other.fill(0..0x4000, 0x77)?;
    container.map(&other.area(A, true))?;
    let edu = Edu::open(&container)?;
    edu.copy_through(A, B, 0x100)?;
    assert!(target.is_all(0..0x100, 0x77)?);

    container.unmap(B, 0x4000)?;
    edu.copy_through(A, B + 0x1000, 0x100)?;
    assert!(target.is_all(0x1000..0x1100, 0x11)?);
    Ok(())
}

#[test]
fn dma_reaches_the_memory_of_another_device() -> Result<()> {
    const RAM: u64 = 0x100_0000;
    // Behind the messages of aarch64, and where the device reaches the beginning.
    const BAR: u64 = 0x900_0000;
    let devices = [HostDevice::SharedMemory, HostDevice::Edu];
    let _host = PassedThrough::take(&devices)?;
    let container = Container::new()?;
    let device = open(&container, HostDevice::SharedMemory)?;
    let edu = Edu::open(&container)?;
    let memory = Memory::new(0x4000)?;
    container.map(&memory.area(RAM, true))?;
    let bar = Memory(map(&device.region(2).mappable[0])?.0);
    container.map(&bar.area(BAR, true))?;

    memory.fill(0..0x100, 0x5a)?;
    device.write(2, 0x30_0000, &[0; 8])?;
    edu.copy_through(RAM, BAR + 0x30_0000, 0x100)?;
    assert_eq!(read_u32(&device, 2, 0x30_0000)?, 0x5a5a_5a5a);
    write_u32(&device, 2, 0x30_0000, 0x1234_5678)?;
    edu.copy_through(BAR + 0x30_0000, RAM + 0x1000, 4)?;
    let mut data = [0; 4];
    memory.0.as_volatile_slice().read_slice(&mut data, 0x1000)?;
    assert_eq!(u32::from_le_bytes(data), 0x1234_5678);
    container.unmap(BAR, bar.0.size() as u64)?;
    Ok(())
}

#[test]
fn the_wired_interrupt_masks_itself() -> Result<()> {
    let _host = PassedThrough::take(&[HostDevice::Edu])?;
    let container = Container::new()?;
    let edu = Edu::open(&container)?;
    assert_eq!(edu.0.irqs(IrqKind::Intx), 1);
    let (trigger, resample) = (event()?, event()?);
    edu.0.set_irqs(IrqKind::Intx, &[Some(&trigger)])?;
    edu.raise()?;
    assert!(arrives(&trigger));
    // It stays up, and is sent once.
    assert!(!arrives_within(&trigger, SHORT));
    edu.0.unmask_intx()?;
    assert!(arrives(&trigger));
    edu.acknowledge()?;
    edu.0.unmask_intx()?;
    assert!(!arrives_within(&trigger, SHORT));

    edu.0.unmask_intx_on(&resample)?;
    edu.raise()?;
    assert!(arrives(&trigger));
    resample.write(1)?;
    assert!(arrives(&trigger));
    edu.acknowledge()?;
    resample.write(1)?;
    assert!(!arrives_within(&trigger, SHORT));

    edu.0.set_irqs(IrqKind::Intx, &[])?;
    edu.raise()?;
    assert!(!arrives_within(&trigger, SHORT));
    edu.0.set_irqs(IrqKind::Intx, &[])?;
    Ok(())
}

#[test]
fn a_message_goes_where_it_is_wanted() -> Result<()> {
    let _host = PassedThrough::take(&[HostDevice::Edu])?;
    let container = Container::new()?;
    let edu = Edu::open(&container)?;
    assert_eq!(edu.0.irqs(IrqKind::Msi), 1);
    assert_eq!(edu.0.irqs(IrqKind::Msix), 0);
    let (first, second) = (event()?, event()?);
    for (events, expected) in [
        (vec![Some(&first)], [true, false]),
        (vec![Some(&second)], [false, true]),
        (vec![None], [false, false]),
        (vec![Some(&first)], [true, false]),
        (vec![], [false, false]),
        (vec![Some(&second)], [false, true]),
    ] {
        edu.0.set_irqs(IrqKind::Msi, &events)?;
        edu.raise()?;
        for (event, expected) in [&first, &second].into_iter().zip(expected) {
            let time = if expected { PATIENCE } else { SHORT };
            assert_eq!(arrives_within(event, time), expected, "{events:?}");
        }
        edu.acknowledge()?;
    }
    let too_many = edu.0.set_irqs(IrqKind::Msi, &[None, None]);
    assert!(matches!(too_many, Err(DeviceError::Refused(_))));
    let absent = edu.0.set_irqs(IrqKind::Msix, &[Some(&first)]);
    assert!(matches!(absent, Err(DeviceError::Refused(_))));
    Ok(())
}

/// Interrupt registers of Intel's 82576 in BAR 0 (its datasheet, section 8.8).
mod card {
    pub const GPIE: u64 = 0x1514;
    pub const EICS: u64 = 0x1520;
    pub const EIMS: u64 = 0x1524;
    pub const EICR: u64 = 0x1580;
    pub const GPIE_MSIX: u32 = 1 << 4;
}

#[test]
fn a_device_forgets_in_a_reset_what_it_was_told() -> Result<()> {
    let devices = [HostDevice::NetworkCard, HostDevice::Nvme];
    let _host = PassedThrough::take(&devices)?;
    let container = Container::new()?;
    let card = open(&container, HostDevice::NetworkCard)?;
    assert!(card.can_reset());
    assert_eq!(read_u32(&card, 0, card::GPIE)?, 0);
    write_u32(&card, 0, card::GPIE, card::GPIE_MSIX)?;
    assert_eq!(read_u32(&card, 0, card::GPIE)?, card::GPIE_MSIX);
    card.reset()?;
    // Its configuration space is as it was, so that its decoders are on.
    assert_eq!(read_u32(&card, 0, card::GPIE)?, 0);

    let nvme = open(&container, HostDevice::Nvme)?;
    assert!(nvme.can_reset());
    nvme.reset()?;
    assert_eq!(read_u32(&nvme, 0, 8)? >> 16, 1);
    Ok(())
}

#[test]
fn messages_have_holes_and_their_number_changes() -> Result<()> {
    let _host = PassedThrough::take(&[HostDevice::NetworkCard])?;
    let container = Container::new()?;
    let card = open(&container, HostDevice::NetworkCard)?;
    assert!(
        card.irqs(IrqKind::Msix) >= 8,
        "{}",
        card.irqs(IrqKind::Msix)
    );
    let events = [event()?, event()?, event()?, event()?, event()?, event()?];
    for wanted in [
        &[0, 2][..],
        &[1],
        &[0, 1, 2, 5],
        &[2],
        &[],
        &[3, 5],
        &[0, 1, 2, 3, 4, 5],
    ] {
        let length = wanted.last().map_or(0, |last| last + 1);
        let list = (0..length).map(|index| wanted.contains(&index).then_some(&events[index]));
        card.set_irqs(IrqKind::Msix, &list.collect::<Vec<_>>())?;
        write_u32(&card, 0, card::GPIE, card::GPIE_MSIX)?;
        write_u32(&card, 0, card::EIMS, 0x3f)?;
        write_u32(&card, 0, card::EICR, 0x3f)?;
        write_u32(&card, 0, card::EICS, 0x3f)?;
        for (index, event) in events.iter().enumerate() {
            let expected = wanted.contains(&index);
            let time = if expected { PATIENCE } else { SHORT / 6 };
            assert_eq!(
                arrives_within(event, time),
                expected,
                "{index} of {wanted:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_conventional_device_has_no_event_for_errors() -> Result<()> {
    let _host = PassedThrough::take(&[HostDevice::Edu])?;
    let container = Container::new()?;
    let edu = Edu::open(&container)?;
    edu.0.on_request(&event()?)?;
    let result = edu.0.on_error(&event()?);
    assert!(
        matches!(&result, Err(DeviceError::Refused(error))
        if error.kind() == ErrorKind::Unsupported),
        "{result:?}"
    );
    Ok(())
}
