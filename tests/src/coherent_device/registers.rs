//! BAR 0: what a driver of a real device reads first, and registers of our own, which make the
//! device do what a test wants. docs/testing.md has the table.

use super::dma::{Request, Status};

/// Bytes of BAR 0.
pub const SIZE: u64 = 16 << 20;

/// MSI-X table, at most 2,048 entries of 16 bytes.
pub const MSIX_TABLE: u64 = 0xb9_0000;
/// MSI-X pending bits.
pub const MSIX_PENDING: u64 = 0xba_0000;

/// Reads as [`MAGIC_VALUE`]: registers of our own follow.
pub const MAGIC: u64 = 0xf0_0000;
/// "COHD", little-endian.
pub const MAGIC_VALUE: u32 = u32::from_le_bytes(*b"COHD");
/// Written with a vector's number: sends that interrupt. Reads as how often it was written.
pub const DOORBELL: u64 = 0xf0_0004;
/// Where the device copies from, 64 bits.
pub const SOURCE: u64 = 0xf0_0010;
/// Where the device copies to, 64 bits.
pub const DESTINATION: u64 = 0xf0_0018;
/// How many bytes it copies, 64 bits.
pub const LENGTH: u64 = 0xf0_0020;
/// Written with [`GO`]: copies. Reads as the [`Status`] of the last copy.
pub const CONTROL: u64 = 0xf0_0028;
/// Starts a copy.
pub const GO: u32 = 1;
/// Bit of an address to copy from or to: the rest is an offset in the device's own memory.
pub const LOCAL: u64 = 1 << 63;

/// What NVIDIA's driver reads before it takes a device for a Hopper: PMC_BOOT_0, PMC_BOOT_1 and
/// PMC_BOOT_42.
const IDENTITY: [(u64, u32); 3] = [(0x0, 0x1800_00a1), (0x4, 0), (0xa00, 0x180a_1000)];

/// Bytes of an entry of the MSI-X table.
const MSIX_ENTRY: usize = 16;

/// What a write makes the device do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this vector.
    Ring(u32),
    /// Copy, and say how it went with [`Registers::finish`].
    Copy(Request),
}

/// The registers.
#[derive(Clone, Debug)]
pub struct Registers {
    /// A copy of what the client keeps: it sends interrupts by itself.
    msix_table: Vec<u8>,
    source: u64,
    destination: u64,
    length: u64,
    status: Status,
    rung: u32,
}

impl Registers {
    /// Registers after a reset, of a device with so many MSI-X vectors.
    pub fn new(vectors: u16) -> Self {
        // Vectors are masked after a reset: the last bit of each entry's last word.
        let entry: [u8; MSIX_ENTRY] = std::array::from_fn(|byte| u8::from(byte == 12));
        Self {
            msix_table: entry.repeat(vectors.into()),
            source: 0,
            destination: 0,
            length: 0,
            status: Status::Idle,
            rung: 0,
        }
    }

    /// Puts everything back as it was.
    pub fn reset(&mut self) {
        *self = Self::new((self.msix_table.len() / MSIX_ENTRY) as u16);
    }

    /// Says how a copy ended.
    pub fn finish(&mut self, status: Status) {
        self.status = status;
    }

    /// Reads `data.len()` bytes at `offset`; beyond the end there are ones.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = match offset.checked_add(at as u64) {
                Some(at) if at < SIZE => self.word(at & !3).to_le_bytes()[(at & 3) as usize],
                _ => 0xff,
            };
        }
    }

    /// Writes 32 or 64 bits at `offset`, which is a multiple of their size; what is written otherwise
    /// is ignored.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<Action> {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return None;
        }
        let mut action = None;
        for (word, at) in data.chunks_exact(4).zip([offset, offset | 4]) {
            let value = word.try_into().map_or(0, u32::from_le_bytes);
            action = self.set_word(at, value).or(action);
        }
        action
    }

    fn word(&self, offset: u64) -> u32 {
        match offset {
            MAGIC => MAGIC_VALUE,
            DOORBELL => self.rung,
            SOURCE..LENGTH | LENGTH..CONTROL => {
                let value = match offset & !7 {
                    SOURCE => self.source,
                    DESTINATION => self.destination,
                    _ => self.length,
                };
                (value >> ((offset & 4) * 8)) as u32
            }
            CONTROL => self.status as u32,
            MSIX_TABLE.. if offset - MSIX_TABLE < self.msix_table.len() as u64 => {
                let at = (offset - MSIX_TABLE) as usize;
                let word = self.msix_table[at..].first_chunk();
                word.map_or(0, |word| u32::from_le_bytes(*word))
            }
            _ => IDENTITY
                .iter()
                .find(|(at, _)| *at == offset)
                .map_or(0, |(_, value)| *value),
        }
    }

    fn set_word(&mut self, offset: u64, value: u32) -> Option<Action> {
        match offset {
            DOORBELL => {
                self.rung = self.rung.wrapping_add(1);
                return Some(Action::Ring(value));
            }
            SOURCE..LENGTH | LENGTH..CONTROL => {
                let register = match offset & !7 {
                    SOURCE => &mut self.source,
                    DESTINATION => &mut self.destination,
                    _ => &mut self.length,
                };
                let shift = (offset & 4) * 8;
                *register &= !(u64::from(u32::MAX) << shift);
                *register |= u64::from(value) << shift;
            }
            CONTROL if value & GO != 0 => {
                return Some(Action::Copy(Request {
                    source: self.source,
                    destination: self.destination,
                    length: self.length,
                }));
            }
            MSIX_TABLE.. if offset - MSIX_TABLE < self.msix_table.len() as u64 => {
                let at = (offset - MSIX_TABLE) as usize;
                if let Some(word) = self.msix_table[at..].first_chunk_mut() {
                    *word = value.to_le_bytes();
                }
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(registers: &Registers, offset: u64) -> u32 {
        let mut data = [0; 4];
        registers.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(registers: &mut Registers, offset: u64, value: u32) -> Option<Action> {
        registers.write(offset, &value.to_le_bytes())
    }

    #[test]
    fn it_says_what_it_is() {
        let registers = Registers::new(8);
        assert_eq!(read(&registers, 0x0), 0x1800_00a1);
        assert_eq!(read(&registers, 0x4), 0);
        assert_eq!(read(&registers, 0xa00), 0x180a_1000);
        assert_eq!(read(&registers, MAGIC), 0x4448_4f43);
        let mut bytes = [0; 3];
        registers.read(0xa01, &mut bytes);
        assert_eq!(bytes, [0x10, 0x0a, 0x18]);
    }

    #[test]
    fn the_doorbell_names_a_vector_and_counts() {
        let mut registers = Registers::new(8);
        assert_eq!(write(&mut registers, DOORBELL, 3), Some(Action::Ring(3)));
        assert_eq!(write(&mut registers, DOORBELL, 7), Some(Action::Ring(7)));
        assert_eq!(read(&registers, DOORBELL), 2);
        registers.reset();
        assert_eq!(read(&registers, DOORBELL), 0);
    }

    #[test]
    fn a_copy_is_programmed_by_halves_or_at_once() {
        let mut registers = Registers::new(8);
        assert_eq!(write(&mut registers, SOURCE, 0x2000), None);
        assert_eq!(write(&mut registers, SOURCE + 4, 0x1), None);
        assert_eq!(
            registers.write(DESTINATION, &(LOCAL | 0x3000).to_le_bytes()),
            None
        );
        assert_eq!(
            registers.write(LENGTH, &0x10_0000_0010_u64.to_le_bytes()),
            None
        );
        let request = Request {
            source: 0x1_0000_2000,
            destination: LOCAL | 0x3000,
            length: 0x10_0000_0010,
        };
        assert_eq!(write(&mut registers, CONTROL, 0), None);
        assert_eq!(
            write(&mut registers, CONTROL, GO),
            Some(Action::Copy(request))
        );
        assert_eq!(read(&registers, DESTINATION + 4), 0x8000_0000);
        assert_eq!(read(&registers, LENGTH + 4), 0x10);
        registers.finish(Status::Done);
        assert_eq!(read(&registers, CONTROL), 1);
        registers.reset();
        for offset in (SOURCE..=CONTROL).step_by(4) {
            assert_eq!(read(&registers, offset), 0, "{offset:#x}");
        }
    }

    #[test]
    fn the_msix_table_is_masked_and_holds_what_is_written() {
        let mut registers = Registers::new(2);
        let last = MSIX_TABLE + 16 + 12;
        assert_eq!(read(&registers, last), 1);
        write(&mut registers, last, 0);
        registers.write(MSIX_TABLE, &0x1122_3344_5566_7788_u64.to_le_bytes());
        assert_eq!(read(&registers, last), 0);
        assert_eq!(read(&registers, MSIX_TABLE + 4), 0x1122_3344);
        // The table ends after two entries.
        write(&mut registers, last + 4, u32::MAX);
        assert_eq!(read(&registers, last + 4), 0);
        registers.reset();
        assert_eq!(read(&registers, last), 1);
        assert_eq!(read(&registers, MSIX_TABLE), 0);
    }

    /// No access panics, and none but those to registers that do something do anything.
    #[test]
    fn every_access_is_answered() {
        let mut registers = Registers::new(2048);
        let edges = [
            0,
            0xa00,
            MSIX_TABLE,
            MSIX_TABLE + 0x8000,
            MAGIC,
            CONTROL,
            SIZE,
        ];
        let offsets = edges
            .iter()
            .flat_map(|edge| (0..16).map(move |step| edge.saturating_sub(8) + step))
            .chain([u64::MAX - 3, u64::MAX]);
        for offset in offsets {
            for length in 0..=9 {
                let action = registers.write(offset, &vec![0; length]);
                assert!(
                    action.is_none() || (MAGIC..MAGIC + 8).contains(&offset),
                    "{offset:#x}, {length}"
                );
                let mut data = vec![0x5a; length];
                registers.read(offset, &mut data);
                if offset >= SIZE {
                    assert_eq!(data, vec![0xff; length], "{offset:#x}");
                }
            }
        }
    }
}
