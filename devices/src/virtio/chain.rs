//! Descriptors that a driver has made available together: one request (section 2.7.5).

use std::sync::Arc;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes as _, GuestAddress};

use super::Memory;

/// Bytes of a descriptor.
const DESCRIPTOR: usize = 16;
/// Descriptors of an indirect table that are read at once. Drivers fill them in order, and each look into
/// guest memory searches for where it is.
const AHEAD: usize = 16;

/// The descriptors of a request, in order. They end where the driver has broken the rules: at one that is not
/// in memory or not in its table, after as many as the table has, before 4 GiB of buffers, and at a
/// table within a table.
#[derive(Clone)]
pub struct Chain {
    memory: Arc<Memory>,
    head: u16,
    /// The table, by its guest physical address, and how many descriptors it has.
    table: u64,
    size: u16,
    /// The index of the next one.
    next: u16,
    /// How many there may yet be: who has more goes in circles.
    left: u16,
    /// Of all buffers until now (section 2.7.5.2).
    bytes: u32,
    is_indirect: bool,
    /// What was read of an indirect table, from which index on, and how many.
    ahead: [[u8; DESCRIPTOR]; AHEAD],
    first: u16,
    count: u16,
}

impl Chain {
    /// The chain that begins with descriptor `head` of a queue's table of `size` descriptors.
    pub(super) fn new(memory: Arc<Memory>, table: u64, size: u16, head: u16) -> Self {
        Self {
            memory,
            head,
            table,
            size,
            next: head,
            left: size,
            bytes: 0,
            is_indirect: false,
            ahead: [[0; DESCRIPTOR]; AHEAD],
            first: 0,
            count: 0,
        }
    }

    /// The index of its first descriptor.
    pub fn head_index(&self) -> u16 {
        self.head
    }

    /// What guest memory it is in.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The buffers that the driver has filled.
    pub fn readable(self) -> impl Iterator<Item = Descriptor> {
        self.filter(|descriptor| !descriptor.is_write_only())
    }

    /// The buffers that the driver wants filled.
    pub fn writable(self) -> impl Iterator<Item = Descriptor> {
        self.filter(Descriptor::is_write_only)
    }

    /// The next descriptor, a reference to an indirect table included.
    fn read(&mut self) -> Option<Descriptor> {
        if self.left == 0 || self.next >= self.size {
            return None;
        }
        if let Some(known) = self.known() {
            return Some(parse(known));
        }
        let address = self
            .table
            .checked_add(u64::from(self.next) * DESCRIPTOR as u64)?;
        let wanted = match self.is_indirect {
            true => AHEAD.min(usize::from(self.size - self.next)),
            // The free descriptors of a queue are in no order.
            false => 1,
        };
        // The driver does not have to have all of a table in memory, just what it uses.
        let count = [wanted, 1].into_iter().find(|count| {
            let room = self.ahead.get_mut(..*count).unwrap_or_default();
            let read = self
                .memory
                .read_slice(room.as_flattened_mut(), GuestAddress(address));
            read.is_ok()
        })?;
        if self.is_indirect {
            self.first = self.next;
            // At most 16.
            self.count = count as u16;
        }
        self.ahead.first().map(parse)
    }

    /// The next descriptor, if it was read already.
    fn known(&self) -> Option<&[u8; DESCRIPTOR]> {
        let at = self.next.checked_sub(self.first)?;
        match at < self.count {
            true => self.ahead.get(usize::from(at)),
            false => None,
        }
    }

    /// Goes on in an indirect table (section 2.7.5.3).
    fn enter(&mut self, table: Descriptor) -> Option<()> {
        let is_possible = !self.is_indirect && table.len().is_multiple_of(DESCRIPTOR as u32);
        if !is_possible {
            return None;
        }
        self.table = table.addr().0;
        self.size = u16::try_from(table.len() / DESCRIPTOR as u32).ok()?;
        self.next = 0;
        self.left = self.size;
        self.is_indirect = true;
        Some(())
    }

    fn go_on(&mut self) -> Option<Descriptor> {
        let mut descriptor = self.read()?;
        if descriptor.refers_to_indirect_table() {
            self.enter(descriptor)?;
            descriptor = self.read()?;
            if descriptor.refers_to_indirect_table() {
                return None;
            }
        }
        self.bytes = self.bytes.checked_add(descriptor.len())?;
        self.left = match descriptor.has_next() {
            // It is not 0.
            true => self.left - 1,
            false => 0,
        };
        self.next = descriptor.next();
        Some(descriptor)
    }
}

impl Iterator for Chain {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        let next = self.go_on();
        if next.is_none() {
            self.left = 0;
        }
        next
    }
}

fn parse(bytes: &[u8; DESCRIPTOR]) -> Descriptor {
    let [a0, a1, a2, a3, a4, a5, a6, a7, rest @ ..] = *bytes;
    let [l0, l1, l2, l3, f0, f1, n0, n1] = rest;
    Descriptor::new(
        u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
        u32::from_le_bytes([l0, l1, l2, l3]),
        u16::from_le_bytes([f0, f1]),
        u16::from_le_bytes([n0, n1]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{RAM, Ram};

    const NEXT: u16 = 1;
    const INDIRECT: u16 = 4;
    const TABLE: u64 = 0x1000;

    /// Writes (address, length, flags, next) from `at` on.
    fn write(memory: &Memory, at: u64, entries: &[(u64, u32, u16, u16)]) {
        for (index, (address, length, flags, next)) in entries.iter().enumerate() {
            let mut bytes = address.to_le_bytes().to_vec();
            bytes.extend(length.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(next.to_le_bytes());
            let at = GuestAddress(at + (index * DESCRIPTOR) as u64);
            memory.write_slice(&bytes, at).unwrap();
        }
    }

    /// Lengths of the buffers of the chain from descriptor 0 on, of a queue with 4 entries.
    fn lengths(
        entries: &[(u64, u32, u16, u16)],
        at: u64,
        table: &[(u64, u32, u16, u16)],
    ) -> Vec<u32> {
        let ram = Ram::default();
        let memory = ram.memory.get();
        write(&memory, TABLE, entries);
        write(&memory, at, table);
        let chain = Chain::new(memory, TABLE, 4, 0);
        chain.map(|descriptor| descriptor.len()).collect()
    }

    #[test]
    fn chains_follow_the_rules_or_end() {
        let of = |entries: &[_]| lengths(entries, 0x2000, &[]);
        // In any order, and to the first that has no next.
        assert_eq!(of(&[(0, 1, NEXT, 2), (0, 9, 0, 0), (0, 3, 0, 1)]), [1, 3]);
        // Around in circles, beyond the table, and beyond 4 GiB.
        assert_eq!(of(&[(0, 1, NEXT, 1), (0, 2, NEXT, 0)]), [1, 2, 1, 2]);
        assert_eq!(of(&[(0, 1, NEXT, 4)]), [1]);
        assert_eq!(of(&[(0, u32::MAX, NEXT, 1), (0, 1, 0, 0)]), [u32::MAX]);
    }

    #[test]
    fn indirect_tables_follow_the_rules_or_end() {
        let at = 0x2000;
        let of = |bytes: u32, table: &[_]| lengths(&[(at, bytes, INDIRECT, 0)], at, table);
        let many: Vec<_> = (0..40).map(|n| (0, u32::from(n), NEXT, n + 1)).collect();
        assert_eq!(of(40 * 16, &many), (0..40).collect::<Vec<_>>());
        assert_eq!(of(17 * 16, &many), (0..17).collect::<Vec<_>>());
        // Backwards, across what is read at once.
        let back: Vec<_> = (0..40_u16)
            .map(|n| (0, u32::from(n), NEXT, (n + 39) % 40))
            .collect();
        let expected: Vec<u32> = [0].into_iter().chain((1..40).rev()).collect();
        assert_eq!(of(40 * 16, &back), expected);
        // No whole descriptors, none at all, too many, and a table in it.
        assert!(of(17, &many).is_empty());
        assert!(of(0, &many).is_empty());
        assert!(of(0x10_0000, &many).is_empty());
        assert_eq!(of(32, &[(0, 1, NEXT, 1), (at, 32, INDIRECT, 0)]), [1]);
        assert!(of(16, &[(at, 16, INDIRECT, 0)]).is_empty());
    }

    /// Only what is used of it has to be.
    #[test]
    fn an_indirect_table_may_reach_beyond_memory() {
        let at = RAM as u64 - 32;
        let table = [(0, 1, NEXT, 1), (0, 2, NEXT, 2)];
        let of = |entry| lengths(&[entry], at, &table);
        assert_eq!(of((at, 64, INDIRECT, 0)), [1, 2]);
        assert!(of((u64::MAX - 15, 64, INDIRECT, 0)).is_empty());
    }
}
