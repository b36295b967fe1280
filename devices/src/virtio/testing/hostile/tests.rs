use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use super::program::MOST_STEPS;
use super::strategies::any_program;
use super::*;

/// Seeds that are checked in.
const SEEDS: usize = 16;

/// A test of each device, so that they run side by side and one that fails says which it is.
macro_rules! devices {
    ($($device:ident),*) => {
        mod any_driver {
            use super::*;

            proptest! {
                $(
                    #[test]
                    fn $device(program in any_program()) {
                        run_program(stringify!($device), program);
                    }
                )*
            }
        }

        mod resets {
            use super::*;

            $(
                #[test]
                fn $device() {
                    for while_busy in [false, true] {
                        reset_often(stringify!($device), 300, while_busy);
                    }
                }
            )*
        }

        mod restless_drivers {
            use super::*;

            $(
                #[test]
                fn $device() {
                    let mut subject = subject(stringify!($device));
                    let device = subject.device();
                    subject.flood();
                    never_rest(device, move |driver| subject.ask(driver));
                }
            )*
        }

        #[test]
        fn every_device_is_here() {
            let here = [$(stringify!($device)),*];
            assert_eq!(devices().collect::<Vec<_>>(), here);
        }
    };
}

devices!(
    rng,
    block,
    block_direct,
    block_readonly,
    block_qcow2,
    net,
    console,
    vsock
);

proptest! {
    #[test]
    fn a_program_is_read_back_as_it_was(program in any_program()) {
        prop_assert_eq!(Program::decode(&program.encode()), program);
    }

    #[test]
    fn any_bytes_are_a_program(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let program = Program::decode(&bytes);
        prop_assert!(program.0.len() <= MOST_STEPS);
        prop_assert_eq!(Program::decode(&program.encode()), program);
    }
}

/// `UPDATE_GOLDEN=1` writes them anew, for fuzzers of any device to begin with.
#[test]
fn seeds_are_what_they_were_made_as() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fuzz/seeds/devices");
    let path = |number| std::path::Path::new(folder).join(format!("{number:02}"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(folder).unwrap();
        let mut runner = TestRunner::deterministic();
        for number in 0..SEEDS {
            let program = any_program().new_tree(&mut runner).unwrap().current();
            std::fs::write(path(number), program.encode()).unwrap();
        }
    }
    for number in 0..SEEDS {
        let bytes = std::fs::read(path(number)).unwrap();
        // If the format has changed, they are something else now.
        assert_eq!(Program::decode(&bytes).encode(), bytes, "{number}");
    }
}
