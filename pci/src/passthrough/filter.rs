//! Which bits of configuration space are the device's own.

use super::lost::Link;
use crate::access::pieces;
use crate::config_space::{SIZE, copy};
use crate::device::region;

/// Configuration space is accessed in pieces of at most this many bytes.
pub(super) const MOST: usize = 4;

/// Bits of each byte. Where none is set, the device does not learn of an access.
pub(super) struct Filter {
    /// Bits that are read from the device; the others come from the emulated space.
    shown: Box<[u8; SIZE]>,
    /// Bits that are written to the device as the guest has them.
    passed: Box<[u8; SIZE]>,
    /// Bits that keep the device's value when others of their byte are passed. What is neither
    /// passed nor kept is written as zero, which leaves bits that are cleared by ones alone.
    kept: Box<[u8; SIZE]>,
}

impl Filter {
    /// Nothing is the device's.
    pub fn new() -> Self {
        Self {
            shown: Box::new([0; SIZE]),
            passed: Box::new([0; SIZE]),
            kept: Box::new([0; SIZE]),
        }
    }

    /// Makes the bits of `mask` at `offset` the device's when they are read.
    pub fn show(&mut self, offset: usize, mask: &[u8]) {
        copy(&mut self.shown[..], offset, mask);
    }

    /// Makes the bits of `mask` at `offset` the device's when they are written.
    pub fn pass(&mut self, offset: usize, mask: &[u8]) {
        copy(&mut self.passed[..], offset, mask);
    }

    /// Keeps the device's bits of `mask` at `offset` as they are.
    pub fn keep(&mut self, offset: usize, mask: &[u8]) {
        copy(&mut self.kept[..], offset, mask);
    }

    /// Replaces in `data`, read from the emulated space at `offset`, what is the device's.
    pub fn read(&self, link: &Link, offset: usize, data: &mut [u8]) {
        for (at, part) in pieces(offset as u64, data.len(), MOST) {
            let shown = mask(&self.shown, at, part.len());
            if shown.iter().all(|mask| *mask == 0) {
                continue;
            }
            let mut device = [0; MOST];
            let device = &mut device[..part.len()];
            link.read(region::CONFIG, at, device, MOST);
            for ((byte, own), mask) in data[part].iter_mut().zip(device).zip(shown) {
                *byte = *byte & !mask | *own & mask;
            }
        }
    }

    /// Writes to the device what of `data` at `offset` is its own.
    pub fn write(&self, link: &Link, offset: usize, data: &[u8]) {
        let passes = |at: usize| self.passed.get(offset + at).is_some_and(|mask| *mask != 0);
        let mut start = 0;
        while start < data.len() {
            let end = (start..data.len()).find(|at| passes(*at) != passes(start));
            let end = end.unwrap_or(data.len());
            if passes(start) {
                self.write_run(link, offset + start, &data[start..end]);
            }
            start = end;
        }
    }

    /// Writes bytes that all have something for the device.
    fn write_run(&self, link: &Link, offset: usize, data: &[u8]) {
        for (at, part) in pieces(offset as u64, data.len(), MOST) {
            let passed = mask(&self.passed, at, part.len());
            let kept = mask(&self.kept, at, part.len());
            let mut value = [0; MOST];
            let value = &mut value[..part.len()];
            let keeps = kept.iter().any(|mask| *mask != 0);
            if keeps && !link.read(region::CONFIG, at, value, MOST) {
                continue;
            }
            for (((byte, new), passed), kept) in
                value.iter_mut().zip(&data[part]).zip(passed).zip(kept)
            {
                *byte = *byte & kept | new & passed;
            }
            link.write(region::CONFIG, at, value, MOST);
        }
    }
}

/// The part of a mask that goes with an access; none outside.
fn mask(masks: &[u8; SIZE], offset: u64, length: usize) -> &[u8] {
    let start = offset as usize;
    masks.get(start..start + length).unwrap_or_default()
}
