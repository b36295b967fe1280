//! The client with a server that is not ours.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use tempfile::TempDir;
use vfio_bindings::bindings::vfio::*;
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, ServerBackend, ServerRegion, SparseArea};
use vmm_sys_util::eventfd::EventFd;

use super::server::memfd;
use super::*;
use crate::device::{Device, IrqKind};
use crate::machine::{DmaArea, DmaTarget};

/// A write here sends the MSI-X vector that is written.
const DOORBELL: u64 = 0x100;
/// A write here writes to the guest address that is written.
const DMA: u64 = 0x108;
/// A read here is refused.
const FORBIDDEN: u64 = 0x110;

#[derive(Default)]
struct Backend {
    memory: Vec<u8>,
    vectors: Vec<Option<File>>,
    intx: Vec<(u32, usize)>,
    maps: Vec<(u64, u64, u64, File)>,
    resets: u32,
}

impl ServerBackend for Backend {
    fn region_read(&mut self, _: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        if offset == FORBIDDEN {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let at = offset as usize;
        data.copy_from_slice(&self.memory[at..at + data.len()]);
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        match (region, offset) {
            (0, DOORBELL) => {
                let vector = self.vectors[usize::from(data[0])].as_mut().unwrap();
                vector.write_all(&1_u64.to_ne_bytes())
            }
            (0, DMA) => {
                let gpa = u64::from_le_bytes(data.try_into().unwrap());
                let (offset, address, _, file) = self
                    .maps
                    .iter()
                    .find(|(_, address, size, _)| (*address..address + size).contains(&gpa))
                    .ok_or(io::ErrorKind::NotFound)?;
                file.write_all_at(b"by DMA", offset + gpa - address)
            }
            _ => {
                let at = offset as usize;
                self.memory[at..at + data.len()].copy_from_slice(data);
                Ok(())
            }
        }
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        file: Option<File>,
    ) -> io::Result<()> {
        assert_eq!(flags, DmaMapFlags::READ_WRITE);
        self.maps.push((offset, address, size, file.unwrap()));
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        let before = self.maps.len();
        self.maps.retain(|map| (map.1, map.2) != (address, size));
        if self.maps.len() == before {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.resets += 1;
        self.memory.fill(0);
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        start: u32,
        count: u32,
        files: Vec<File>,
    ) -> io::Result<()> {
        if index == VFIO_PCI_INTX_IRQ_INDEX {
            self.intx.push((flags, files.len()));
            return Ok(());
        }
        if (start, count) == (0, 0) {
            self.vectors = (0..64).map(|_| None).collect();
            return Ok(());
        }
        assert_eq!(files.len(), count as usize);
        for (vector, file) in self.vectors.iter_mut().skip(start as usize).zip(files) {
            *vector = Some(file);
        }
        Ok(())
    }
}

struct Running {
    _folder: TempDir,
    path: PathBuf,
    thread: JoinHandle<Backend>,
}

fn region(index: u32, flags: u32, size: u64) -> ServerRegion {
    ServerRegion {
        region_info: vfio_region_info {
            argsz: 32,
            flags,
            index,
            size,
            ..Default::default()
        },
        sparse_areas: Vec::new(),
        mmap_fd: None,
    }
}

/// A server with registers in BAR 0 and mappable memory, that of `shared`, in BAR 2.
fn run(shared: &File) -> Running {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let access = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
    let mut regions: Vec<_> = (0..9).map(|index| region(index, 0, 0)).collect();
    regions[0] = region(0, access, 4 << 20);
    regions[2] = region(2, access | VFIO_REGION_INFO_FLAG_MMAP, 4 * page_size());
    regions[2].mmap_fd = Some(shared.as_raw_fd());
    regions[2].sparse_areas = [(0, 1), (2, 2)]
        .map(|(offset, size)| SparseArea {
            area: vfio_region_sparse_mmap_area {
                offset: offset * page_size(),
                size: size * page_size(),
            },
        })
        .to_vec();
    regions[7] = region(7, access, 256);
    let irqs = [(0, 1), (1, 0), (2, 64)]
        .map(|(index, count)| IrqInfo {
            index,
            flags: VFIO_IRQ_INFO_EVENTFD,
            count,
        })
        .to_vec();
    let server = vfio_user::Server::new(&path, true, irqs, regions).unwrap();
    let thread = thread::spawn(move || {
        let mut backend = Backend {
            memory: vec![0; 4 << 20],
            ..Default::default()
        };
        server.run(&mut backend).unwrap();
        backend
    });
    Running {
        _folder: folder,
        path,
        thread,
    }
}

impl Running {
    fn finish(self, client: Client) -> Backend {
        drop(client);
        self.thread.join().unwrap()
    }
}

#[test]
fn regions() {
    let shared = memfd(4);
    let running = run(&shared);
    let client = Client::connect(&running.path).unwrap();
    assert_eq!(client.region(0).size, 4 << 20);
    assert_eq!(client.region(7).size, 256);
    let bar2 = client.region(2);
    assert!(bar2.sparse);
    let areas: Vec<_> = bar2
        .mappable
        .iter()
        .map(|area| (area.offset, area.size))
        .collect();
    assert_eq!(
        areas,
        [(0, page_size()), (2 * page_size(), 2 * page_size())]
    );
    let file = File::from(bar2.mappable[1].file.try_clone().unwrap());
    file.write_all_at(b"hello", bar2.mappable[1].file_offset)
        .unwrap();
    let mut data = [0; 5];
    shared.read_exact_at(&mut data, 2 * page_size()).unwrap();
    assert_eq!(&data, b"hello");
    running.finish(client);
}

#[test]
fn reads_and_writes() {
    let shared = memfd(4);
    let running = run(&shared);
    let client = Client::connect(&running.path).unwrap();
    client.write(0, 0x1000, &[1, 2, 3, 4]).unwrap();
    let mut data = [0; 4];
    client.read(0, 0x1000, &mut data).unwrap();
    assert_eq!(data, [1, 2, 3, 4]);

    // More than fits into one message, which is 1 MiB.
    let long: Vec<_> = (0..5_u32 << 19)
        .map(|at| (at * 7).to_le_bytes()[1])
        .collect();
    client.write(0, 0x2001, &long).unwrap();
    let mut read = vec![0; long.len()];
    client.read(0, 0x2001, &mut read).unwrap();
    assert!(read == long);

    refused(client.read(0, FORBIDDEN, &mut data));
    client.read(0, 0x1000, &mut data).unwrap();
    assert_eq!(data, [1, 2, 3, 4]);
    running.finish(client);
}

#[test]
fn interrupts() {
    let shared = memfd(4);
    let running = run(&shared);
    let client = Client::connect(&running.path).unwrap();
    assert_eq!(client.irqs(IrqKind::Intx), 1);
    assert_eq!(client.irqs(IrqKind::Msi), 0);
    assert_eq!(client.irqs(IrqKind::Msix), 64);
    let events: Vec<_> = (0..40)
        .map(|_| EventFd::new(libc::EFD_NONBLOCK).unwrap())
        .collect();
    let mut list: Vec<_> = events.iter().map(Some).collect();
    list[5] = None;
    client.set_irqs(IrqKind::Msix, &list).unwrap();
    for vector in [0, 17, 39] {
        client.write(0, DOORBELL, &[vector]).unwrap();
        let pending: Vec<_> = (0..40).filter(|at| events[*at].read().is_ok()).collect();
        assert_eq!(pending, [usize::from(vector)]);
    }
    client.set_irqs(IrqKind::Intx, &[Some(&events[0])]).unwrap();
    client.unmask_intx_on(&events[1]).unwrap();
    client.unmask_intx().unwrap();

    let backend = running.finish(client);
    let set: Vec<_> = backend.vectors.iter().map(Option::is_some).collect();
    let expected: Vec<_> = (0..64).map(|at| at < 40 && at != 5).collect();
    assert_eq!(set, expected);
    let unmask = VFIO_IRQ_SET_ACTION_UNMASK;
    let trigger = VFIO_IRQ_SET_ACTION_TRIGGER;
    assert_eq!(
        backend.intx,
        [
            (VFIO_IRQ_SET_DATA_NONE | trigger, 0),
            (VFIO_IRQ_SET_DATA_EVENTFD | trigger, 1),
            (VFIO_IRQ_SET_DATA_EVENTFD | unmask, 1),
            (VFIO_IRQ_SET_DATA_NONE | unmask, 0),
        ]
    );
}

#[test]
fn dma() {
    let shared = memfd(4);
    let running = run(&shared);
    let client = Client::connect(&running.path).unwrap();
    let memory = memfd(8);
    let gpa = 0x8000_0000;
    let area = DmaArea {
        gpa,
        size: 4 * page_size(),
        host_address: 0,
        file: Some((
            Arc::new(memory.try_clone().unwrap().into()),
            2 * page_size(),
        )),
        writable: true,
    };
    client.map(&area).unwrap();
    let write = |gpa: u64| client.write(0, DMA, &gpa.to_le_bytes());
    write(gpa + 0x20).unwrap();
    let mut data = [0; 6];
    memory
        .read_exact_at(&mut data, 2 * page_size() + 0x20)
        .unwrap();
    assert_eq!(&data, b"by DMA");

    client.unmap(gpa, 4 * page_size()).unwrap();
    refused(write(gpa));
    // The server says so if nothing was there.
    let error = client.unmap(gpa, 4 * page_size()).unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
    client.map(&area).unwrap();
    assert_eq!(running.finish(client).maps.len(), 1);
}

#[test]
fn reset() {
    let shared = memfd(4);
    let running = run(&shared);
    let client = Client::connect(&running.path).unwrap();
    assert!(client.can_reset());
    client.write(7, 4, &[7]).unwrap();
    client.reset().unwrap();
    let mut data = [1];
    client.read(7, 4, &mut data).unwrap();
    assert_eq!(data, [0]);
    client.check().unwrap();
    assert_eq!(running.finish(client).resets, 1);
}
