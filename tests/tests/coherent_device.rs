//! The simulated coherent device as a client sees it, by the client half of the `vfio_user` crate.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::CoherentDevice;
use tests::coherent_device::{
    CONTROL, DESTINATION, DOORBELL, GO, LENGTH, LOCAL, MAGIC, MAGIC_VALUE, Options, SOURCE, Status,
};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
};
use vfio_user::Client;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const BAR0: u32 = 0;
const BAR2: u32 = 2;
const BAR4: u32 = 4;
const CONFIG: u32 = 7;
const MSIX: u32 = 2;

/// Ample for what takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough for an answer that should not come.
const SILENCE: Duration = Duration::from_millis(300);

fn small() -> Options {
    Options {
        memory: 4 << 20,
        reserved: 64 << 10,
        ..Options::default()
    }
}

fn start(options: Options) -> Result<CoherentDevice> {
    CoherentDevice::start_program(Path::new(env!("CARGO_BIN_EXE_coherent_device")), options)
}

fn connect(device: &CoherentDevice) -> Result<Client> {
    Client::new(device.socket()).context("cannot connect")
}

fn read(client: &mut Client, region: u32, offset: u64) -> Result<u32> {
    let mut data = [0; 4];
    client.region_read(region, offset, &mut data)?;
    Ok(u32::from_le_bytes(data))
}

fn write(client: &mut Client, region: u32, offset: u64, value: u32) -> Result<()> {
    client.region_write(region, offset, &value.to_le_bytes())?;
    Ok(())
}

/// Memory decoding and bus mastering.
fn enable(client: &mut Client) -> Result<()> {
    write(client, CONFIG, 4, 0x6)
}

/// Copies, and returns how it went.
fn copy(client: &mut Client, source: u64, destination: u64, length: u64) -> Result<u32> {
    for (register, value) in [
        (SOURCE, source),
        (DESTINATION, destination),
        (LENGTH, length),
    ] {
        client.region_write(BAR0, register, &value.to_le_bytes())?;
    }
    write(client, BAR0, CONTROL, GO)?;
    read(client, BAR0, CONTROL)
}

fn set_events(client: &mut Client, start: u32, events: &[&EventFd]) -> Result<()> {
    let descriptors: Vec<_> = events.iter().map(|event| event.as_raw_fd()).collect();
    let flags = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD;
    client.set_irqs(MSIX, flags, start, events.len() as u32, &descriptors)?;
    Ok(())
}

#[test]
fn it_looks_like_a_gh200() -> Result<()> {
    let device = start(Options {
        usable: Some(500 << 20),
        ..Options::default()
    })?;
    let mut client = connect(&device)?;
    assert_eq!(read(&mut client, CONFIG, 0)?, 0x2342_10de);
    assert_eq!(read(&mut client, CONFIG, 8)? >> 8, 0x03_0200);
    assert_eq!(read(&mut client, BAR0, 0)?, 0x1800_00a1);
    assert_eq!(read(&mut client, BAR0, 0xa00)?, 0x180a_1000);
    assert_eq!(read(&mut client, BAR0, MAGIC)?, MAGIC_VALUE);

    let size = |index| client.region(index).map(|region| region.size);
    let sizes: Vec<_> = (0..9).map(size).collect();
    let expected = [16 << 20, 0, 1 << 20, 0, 512 << 20, 0, 0, 4096, 0];
    assert_eq!(sizes, expected.map(Some));

    let mappable = |index| {
        let region = client.region(index)?;
        let areas = &region.sparse_areas;
        let areas: Vec<_> = areas.iter().map(|area| (area.offset, area.size)).collect();
        Some((region.file_offset.is_some(), areas))
    };
    assert_eq!(mappable(BAR0), Some((false, vec![])));
    assert_eq!(mappable(BAR2), Some((true, vec![(0, 1 << 20)])));
    assert_eq!(mappable(BAR4), Some((true, vec![(0, 500 << 20)])));

    let vectors: Result<Vec<_>, _> = (0..5)
        .map(|index| client.get_irq_info(index).map(|info| info.count))
        .collect();
    assert_eq!(vectors?, [0, 0, 8, 0, 0]);
    Ok(())
}

#[test]
fn its_memory_is_the_file_and_ends_where_it_should() -> Result<()> {
    let device = start(Options {
        usable: Some(3 << 20),
        ..small()
    })?;
    let mut client = connect(&device)?;
    let file = device.memory()?;
    assert_eq!(file.metadata()?.len(), 3 << 20);

    write(&mut client, BAR4, 0x1000, 0x1234_5678)?;
    let mut data = [0; 4];
    file.read_exact_at(&mut data, 0x1000)?;
    assert_eq!(u32::from_le_bytes(data), 0x1234_5678);

    let region = client.region(BAR4).context("BAR 4")?;
    let mapped = region.file_offset.as_ref().context("a descriptor")?;
    assert_eq!(mapped.start(), 0);
    mapped.file().write_all_at(b"mine", 0x2000)?;
    assert_eq!(
        read(&mut client, BAR4, 0x2000)?,
        u32::from_le_bytes(*b"mine")
    );

    write(&mut client, BAR4, 3 << 20, 0)?;
    assert_eq!(read(&mut client, BAR4, 3 << 20)?, u32::MAX);
    assert_eq!(file.metadata()?.len(), 3 << 20);

    write(&mut client, BAR2, 0xfffc, 7)?;
    assert_eq!(read(&mut client, BAR2, 0xfffc)?, 7);
    Ok(())
}

#[test]
fn the_doorbell_sends_the_vector() -> Result<()> {
    let device = start(small())?;
    let mut client = connect(&device)?;
    let events = [EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?];
    set_events(&mut client, 3, &[&events[0], &events[1]])?;

    // Without bus mastering no interrupt leaves the device.
    write(&mut client, BAR0, DOORBELL, 4)?;
    assert!(events[1].read().is_err());
    enable(&mut client)?;
    write(&mut client, BAR0, DOORBELL, 4)?;
    write(&mut client, BAR0, DOORBELL, 4)?;
    assert_eq!(events[1].read()?, 2);
    assert!(events[0].read().is_err());
    assert_eq!(read(&mut client, BAR0, DOORBELL)?, 3);

    // None of these is set up.
    for vector in [0, 5, 8, u32::MAX] {
        write(&mut client, BAR0, DOORBELL, vector)?;
    }
    // The client half sends them by itself too, and turns them off.
    let all = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_NONE;
    client.set_irqs(MSIX, all, 3, 1, &[])?;
    assert_eq!(events[0].read()?, 1);
    client.set_irqs(MSIX, all, 0, 0, &[])?;
    write(&mut client, BAR0, DOORBELL, 3)?;
    assert!(events[0].read().is_err());
    Ok(())
}

#[test]
fn it_copies_from_and_to_memory_that_it_may_reach() -> Result<()> {
    let device = start(small())?;
    let own = device.memory()?;
    let mut client = connect(&device)?;
    let ram: File = tempfile::tempfile()?;
    ram.set_len(2 << 20)?;
    ram.write_all_at(b"from the guest", (1 << 20) + 0x123)?;
    let gpa = 0x1_0000_0000;
    client.dma_map(1 << 20, gpa, 1 << 20, ram.as_raw_fd())?;

    let status = copy(&mut client, gpa + 0x123, LOCAL | 0x40, 14)?;
    assert_eq!(status, Status::NoBusMaster as u32);
    enable(&mut client)?;
    let status = copy(&mut client, gpa + 0x123, LOCAL | 0x40, 14)?;
    assert_eq!(status, Status::Done as u32);
    let mut data = [0; 14];
    own.read_exact_at(&mut data, 0x40)?;
    assert_eq!(&data, b"from the guest");

    own.write_all_at(&[0x5a; 0x2_0000], 0x10_0000)?;
    let status = copy(&mut client, LOCAL | 0x10_0000, gpa, 0x2_0000)?;
    assert_eq!(status, Status::Done as u32);
    let mut copied = vec![0; 0x2_0001];
    ram.read_exact_at(&mut copied, 1 << 20)?;
    assert_eq!(copied[..0x2_0000], [0x5a; 0x2_0000]);
    assert_eq!(copied[0x2_0000], 0);

    let status = copy(&mut client, gpa - 1, LOCAL, 1)?;
    assert_eq!(status, Status::NoSource as u32);
    client.dma_unmap(gpa, 1 << 20)?;
    let status = copy(&mut client, LOCAL, gpa, 1)?;
    assert_eq!(status, Status::NoDestination as u32);
    Ok(())
}

#[test]
fn a_reset_puts_registers_back() -> Result<()> {
    let device = start(small())?;
    let mut client = connect(&device)?;
    let in_use = |client: &mut Client| -> Result<()> {
        enable(client)?;
        write(client, BAR0, SOURCE, 0x1000)?;
        write(client, BAR4, 0, 0x1234)
    };
    let is_reset = |client: &mut Client| -> Result<bool> {
        let command = read(client, CONFIG, 4)? & 0xffff;
        Ok(command == 0 && read(client, BAR0, SOURCE)? == 0)
    };
    in_use(&mut client)?;
    ensure!(!is_reset(&mut client)?);
    client.reset()?;
    ensure!(is_reset(&mut client)?);
    // A function-level reset, by the device control register.
    in_use(&mut client)?;
    write(&mut client, CONFIG, 0x80, 0x8000)?;
    ensure!(is_reset(&mut client)?);
    assert_eq!(read(&mut client, BAR4, 0)?, 0x1234);
    Ok(())
}

#[test]
fn it_ends_when_its_client_hangs_up() -> Result<()> {
    let mut device = start(small())?;
    let client = connect(&device)?;
    client.shutdown()?;
    ensure!(device.wait(PATIENCE)?.success());
    ensure!(!device.socket().exists());
    Ok(())
}

#[test]
fn it_serves_again_if_it_is_kept() -> Result<()> {
    let device = start(Options {
        keep: true,
        ..small()
    })?;
    let ram = tempfile::tempfile()?;
    ram.set_len(4096)?;
    for _ in 0..3 {
        let mut client = connect(&device)?;
        assert_eq!(read(&mut client, CONFIG, 4)? & 0xffff, 0);
        // What the last client left is gone: this would overlap.
        client.dma_map(0, 0, 4096, ram.as_raw_fd())?;
        enable(&mut client)?;
        let status = copy(&mut client, 0, LOCAL, 4096)?;
        assert_eq!(status, Status::Done as u32);
        client.shutdown()?;
    }
    Ok(())
}

#[test]
fn it_takes_its_memory_away_if_it_is_told_to() -> Result<()> {
    let device = start(Options {
        shrink_after_doorbell: true,
        ..small()
    })?;
    let mut client = connect(&device)?;
    enable(&mut client)?;
    write(&mut client, BAR4, 0, 1)?;
    let event = EventFd::new(EFD_NONBLOCK)?;
    set_events(&mut client, 0, &[&event])?;
    write(&mut client, BAR0, DOORBELL, 0)?;
    assert_eq!(device.memory()?.metadata()?.len(), 0);
    assert_eq!(read(&mut client, BAR4, 0)?, u32::MAX);
    assert_eq!(event.read()?, 1);
    Ok(())
}

#[test]
fn it_dies_if_it_is_told_to() -> Result<()> {
    let mut device = start(Options {
        die_after_doorbell: true,
        ..small()
    })?;
    let mut client = connect(&device)?;
    ensure!(write(&mut client, BAR0, DOORBELL, 0).is_err());
    assert_eq!(device.wait(PATIENCE)?.code(), Some(1));
    ensure!(device.socket().exists());
    Ok(())
}

#[test]
fn it_falls_silent_if_it_is_told_to() -> Result<()> {
    let mut device = start(Options {
        silent_after_doorbell: true,
        ..small()
    })?;
    let mut client = connect(&device)?;
    assert_eq!(read(&mut client, BAR0, DOORBELL)?, 0);
    let waiting = thread::spawn(move || write(&mut client, BAR0, DOORBELL, 0).is_err());
    thread::sleep(SILENCE);
    ensure!(!waiting.is_finished());
    ensure!(device.wait(Duration::ZERO).is_err());
    device.kill()?;
    ensure!(waiting.join().is_ok_and(|failed| failed));
    Ok(())
}

#[test]
fn a_device_that_cannot_be_does_not_start() -> Result<()> {
    let options = Options {
        memory: 3 << 20,
        ..small()
    };
    ensure!(start(options).is_err());
    let first = start(small())?;
    let options = Options {
        socket: first.socket().to_owned(),
        ..small()
    };
    ensure!(start(options).is_err());
    Ok(())
}
