//! Tables that are damaged, hostile or newer than the readers.

use alloc::string::ToString;

use super::*;
use crate::ReadError;
use crate::table::Signature;

fn srat_of_one_node() -> Vec<u8> {
    srat::encode(&topology(vec![host(0)]), &IDS).into_bytes()
}

fn hmat_of_everything() -> Vec<u8> {
    let topology = Topology::new(everything()).unwrap();
    hmat::encode(&topology, &IDS).unwrap().into_bytes()
}

#[test]
fn the_header_is_checked() {
    let good = srat_of_one_node();
    let table = Signature(*b"SRAT");
    assert!(srat::read(&good).is_ok());

    let error = srat::read(&good[..35]).unwrap_err();
    let (found, least) = (35, 48);
    assert_eq!(
        error,
        ReadError::TooShort {
            table,
            found,
            least
        }
    );
    assert_eq!(
        slit::read(&good).unwrap_err().to_string(),
        "this is table SRAT, not SLIT"
    );
    assert_eq!(
        srat::read(&good[..100]).unwrap_err().to_string(),
        "table SRAT says that it has 112 bytes, but 100 are there"
    );
    let mut longer = good.clone();
    longer.push(0);
    assert!(matches!(
        srat::read(&longer),
        Err(ReadError::Length { found: 113, .. })
    ));
    let mut damaged = good;
    damaged[60] ^= 0x10;
    assert!(matches!(
        srat::read(&damaged),
        Err(ReadError::Checksum { sum: 0x10, .. })
    ));
}

#[test]
fn a_header_alone_is_too_short() {
    for (signature, least) in [(*b"SRAT", 48), (*b"SLIT", 44), (*b"HMAT", 40)] {
        let mut bytes = srat_of_one_node();
        bytes.truncate(least - 1);
        bytes[..4].copy_from_slice(&signature);
        bytes[8] = 2;
        mend(&mut bytes);
        let errors = [
            srat::read(&bytes).err(),
            slit::read(&bytes).err(),
            hmat::read(&bytes).err(),
        ];
        let expected = ReadError::TooShort {
            table: Signature(signature),
            found: least - 1,
            least,
        };
        assert!(errors.contains(&Some(expected)), "{errors:?}");
    }
}

#[test]
fn entries_tell_sensible_lengths() {
    // The processor's entry is at 48 and has 24 bytes, the memory's at 72 has 40.
    for (at, length, least) in [
        (48, 0, 2),
        (48, 1, 2),
        (48, 23, 24),
        (72, 41, 2),
        (72, 39, 40),
    ] {
        let mut bytes = srat_of_one_node();
        bytes[at + 1] = length;
        mend(&mut bytes);
        match srat::read(&bytes) {
            Err(ReadError::EntryLength {
                offset,
                length: found,
                least: needed,
                ..
            }) => assert_eq!(
                (offset, found, needed),
                (at, usize::from(length), least),
                "{length}"
            ),
            other => panic!("{other:?}"),
        }
    }
    let mut bytes = srat_of_one_node();
    bytes.push(1);
    mend(&mut bytes);
    assert_eq!(
        srat::read(&bytes).unwrap_err().to_string(),
        "the entry at 0x70 of table SRAT says that it has 0 bytes: it needs 2, and 1 are left"
    );
}

#[test]
fn entries_may_be_longer_and_of_other_types() {
    let mut bytes = srat_of_one_node();
    let known = srat::read(&bytes).unwrap();
    bytes[73] += 3;
    bytes.extend([0xaa; 3]);
    bytes.extend([0x77, 5, 1, 2, 3]);
    mend(&mut bytes);
    let srat = srat::read(&bytes).unwrap();
    assert_eq!(srat.entries[0], known.entries[0]);
    let (srat::Entry::Memory(old), srat::Entry::Memory(new)) =
        (&known.entries[1], &srat.entries[1])
    else {
        panic!("{srat:?}");
    };
    assert_eq!((old.pxm(), old.range()), (new.pxm(), new.range()));
    let unknown = &srat.entries[2];
    assert_eq!(unknown.as_bytes(), [0x77, 5, 1, 2, 3]);
    assert!(matches!(
        unknown,
        srat::Entry::Unknown {
            entry_type: 0x77,
            ..
        }
    ));
    assert!(!unknown.is_enabled());
    assert_eq!(unknown.pxm(), None);
}

#[test]
fn devices_with_other_handles_are_nobody() {
    let mut node = Node::new(pxm(0));
    node.initiators.push(pci(0, 0, 0, 0));
    let mut bytes = srat::encode(&topology(vec![node]), &IDS).into_bytes();
    bytes[48 + 3] = 2;
    mend(&mut bytes);
    let srat = srat::read(&bytes).unwrap();
    assert!(matches!(&srat.entries[0], srat::Entry::GenericInitiator(gi) if gi.device().is_none()));
}

#[test]
fn matrices_are_square() {
    let good = slit::encode(&topology(vec![host(1)]), &IDS).into_bytes();
    // 2^32 localities squared are 0 modulo 2^64.
    for localities in [0, 1, 3, 1 << 32, u64::MAX] {
        let mut bytes = good.clone();
        bytes[36..44].copy_from_slice(&localities.to_le_bytes());
        mend(&mut bytes);
        let table = Signature(*b"SLIT");
        let cells = 4;
        assert_eq!(
            slit::read(&bytes),
            Err(ReadError::MatrixSize {
                table,
                localities,
                cells
            })
        );
    }
    let mut bytes = good;
    bytes.truncate(44);
    bytes[36..44].copy_from_slice(&(1u64 << 32).to_le_bytes());
    mend(&mut bytes);
    assert!(slit::read(&bytes).is_err());
}

#[test]
fn structures_are_as_long_as_their_contents() {
    let good = hmat_of_everything();
    // Two type 0 structures of 40 bytes, then the first matrix with 2 initiators, 4 targets.
    let matrix = 40 + 2 * 40;
    assert_eq!(good[matrix], 1);
    for (field, value) in [
        (12, 3),
        (16, 5),
        (12, u32::MAX),
        (16, u32::MAX),
        (4, 71),
        (4, 7),
        (4, u32::MAX),
    ] {
        let mut bytes = good.clone();
        bytes[matrix + field..][..4].copy_from_slice(&value.to_le_bytes());
        mend(&mut bytes);
        assert!(
            matches!(hmat::read(&bytes), Err(ReadError::EntryLength { offset, .. }) if offset == matrix),
            "{field} {value}"
        );
    }
    let mut both = good.clone();
    both[matrix + 12..matrix + 20].fill(0xff);
    mend(&mut both);
    assert!(hmat::read(&both).is_err());

    // The cache, last, has three handles of two bytes.
    let handles = good.len() - 8;
    let mut bytes = good.clone();
    assert_eq!(bytes[handles], 3);
    bytes[handles] = 4;
    mend(&mut bytes);
    assert!(hmat::read(&bytes).is_err());
}

#[test]
fn old_hmats_are_refused_and_newer_ones_read() {
    for (revision, good) in [(1, false), (2, true), (3, true)] {
        let mut bytes = hmat_of_everything();
        bytes.extend([9, 0, 0, 0, 10, 0, 0, 0, 0xab, 0xcd]);
        bytes[8] = revision;
        mend(&mut bytes);
        match hmat::read(&bytes) {
            Ok(hmat) => {
                assert!(good);
                let last = hmat.structures.last().unwrap();
                assert!(
                    matches!(last, hmat::Structure::Unknown { structure_type: 9, bytes } if bytes.len() == 10)
                );
            }
            Err(error) => {
                assert!(!good);
                assert_eq!(
                    error.to_string(),
                    "table HMAT has revision 1: 2 is the oldest that can be read"
                );
            }
        }
    }
}

#[test]
fn attachments_may_lack_an_initiator() {
    let mut bytes = hmat_of_everything();
    assert_eq!(bytes[48], 1);
    bytes[48] = 0;
    mend(&mut bytes);
    let hmat = hmat::read(&bytes).unwrap();
    let hmat::Structure::MemoryDomain(domain) = &hmat.structures[0] else {
        panic!("{hmat:?}");
    };
    assert_eq!(domain.initiator(), None);
}
