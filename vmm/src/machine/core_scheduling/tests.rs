use std::collections::{BTreeMap, BTreeSet};
use std::sync::Barrier;
use std::thread;

use super::*;

const VCPUS: usize = 8;

/// A kernel that keeps cookies of threads and notes what is asked of it.
#[derive(Default)]
struct Fake {
    state: Mutex<State>,
    /// What it answers instead.
    errno: Option<i32>,
    siblings: bool,
}

#[derive(Default)]
struct State {
    cookies: BTreeMap<pid_t, u64>,
    created: u64,
    calls: Vec<(c_int, pid_t, c_int)>,
}

impl Fake {
    fn failing(errno: i32, siblings: bool) -> Self {
        Self {
            errno: Some(errno),
            siblings,
            ..Self::default()
        }
    }

    fn cookie(&self) -> Option<u64> {
        let state = self.state.lock().unwrap();
        state.cookies.get(&self.this_thread()).copied()
    }

    fn calls(&self) -> Vec<(c_int, pid_t, c_int)> {
        self.state.lock().unwrap().calls.clone()
    }
}

impl Kernel for Fake {
    fn sched_core(&self, command: c_int, thread: pid_t, scope: c_int) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.calls.push((command, thread, scope));
        if let Some(errno) = self.errno {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let cookie = match command {
            libc::PR_SCHED_CORE_CREATE => {
                state.created += 1;
                state.created
            }
            // What Linux makes of a thread without one: none is taken over.
            libc::PR_SCHED_CORE_SHARE_FROM => state.cookies.get(&thread).copied().unwrap_or(0),
            _ => panic!("command {command}"),
        };
        state.cookies.insert(self.this_thread(), cookie);
        Ok(())
    }

    fn this_thread(&self) -> pid_t {
        Linux.this_thread()
    }

    fn has_siblings(&self) -> bool {
        self.siblings
    }
}

const CREATE: (c_int, pid_t, c_int) = (
    libc::PR_SCHED_CORE_CREATE,
    0,
    libc::PR_SCHED_CORE_SCOPE_THREAD,
);

/// What `read` finds in each of some threads that run, and start, at the same time.
fn in_vcpus<K, T>(cookies: &Cookies<K>, read: impl Fn() -> T + Sync) -> Vec<T>
where
    K: Kernel + Sync,
    T: Send,
{
    let together = Barrier::new(VCPUS);
    thread::scope(|scope| {
        let vcpu = || {
            together.wait();
            let cookie = cookies.take().unwrap();
            let found = read();
            together.wait();
            drop(cookie);
            found
        };
        let threads: Vec<_> = (0..VCPUS).map(|_| scope.spawn(vcpu)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

#[test]
fn vcpus_of_a_machine_share_one_cookie() {
    for asked in [None, Some(CoreScheduling::Vm)] {
        let cookies = Cookies::with(Fake::default(), asked);
        let found = in_vcpus(&cookies, || cookies.kernel.cookie());
        assert_eq!(found, [Some(1); VCPUS]);
        assert_eq!(cookies.kernel.cookie(), None, "the thread that starts them");
        let calls = cookies.kernel.calls();
        assert_eq!(calls[0], CREATE);
        assert_eq!(calls.len(), VCPUS);
        for (command, holder, scope) in &calls[1..] {
            assert_eq!(*command, libc::PR_SCHED_CORE_SHARE_FROM);
            assert!(cookies.kernel.state.lock().unwrap().cookies[holder] == 1);
            assert_eq!(*scope, libc::PR_SCHED_CORE_SCOPE_THREAD);
        }
        assert!(lock(&cookies.holders).is_empty());
    }
}

#[test]
fn each_vcpu_has_a_cookie_of_its_own() {
    let cookies = Cookies::with(Fake::default(), Some(CoreScheduling::Vcpu));
    let found = in_vcpus(&cookies, || cookies.kernel.cookie().unwrap());
    let different: BTreeSet<u64> = found.into_iter().collect();
    assert_eq!(different.len(), VCPUS);
    assert_eq!(cookies.kernel.calls(), [CREATE; VCPUS]);
}

#[test]
fn machines_do_not_share_a_cookie() {
    let [first, second] = [(); 2].map(|()| Cookies::with(Fake::default(), None));
    let _first = first.take().unwrap();
    let _second = second.take().unwrap();
    assert_eq!(second.kernel.calls(), [CREATE]);
}

#[test]
fn the_kernel_is_not_asked_where_nothing_is_to_be_kept_apart() {
    let cookies = Cookies::with(Fake::failing(libc::EPERM, true), Some(CoreScheduling::Off));
    in_vcpus(&cookies, || ());
    assert!(cookies.kernel.calls().is_empty());
}

#[test]
fn a_cookie_comes_from_a_thread_that_runs() {
    let cookies = Cookies::with(Fake::default(), None);
    let (cookies, kernel) = (&cookies, &cookies.kernel);
    let [first_holds, second_holds, first_ended] = [(); 3].map(|()| Barrier::new(2));
    thread::scope(|scope| {
        scope.spawn(|| {
            let cookie = cookies.take().unwrap();
            first_holds.wait();
            second_holds.wait();
            drop(cookie);
            first_ended.wait();
        });
        first_holds.wait();
        let cookie = cookies.take().unwrap();
        second_holds.wait();
        first_ended.wait();
        let third = scope.spawn(|| {
            let _cookie = cookies.take().unwrap();
            kernel.cookie()
        });
        assert_eq!(third.join().unwrap(), kernel.cookie());
        let from_second = (libc::PR_SCHED_CORE_SHARE_FROM, kernel.this_thread());
        let (command, holder, _) = kernel.calls()[2];
        assert_eq!((command, holder), from_second);
        drop(cookie);
    });
    // Nobody is left who has it.
    let _cookie = cookies.take().unwrap();
    assert_eq!(kernel.calls()[3], CREATE);
}

#[test]
fn a_thread_that_panics_is_not_shared_from() {
    let cookies = Cookies::with(Fake::default(), None);
    let panicked = thread::scope(|scope| {
        let vcpu = scope.spawn(|| {
            let _cookie = cookies.take().unwrap();
            panic!("as a vCPU's thread may");
        });
        vcpu.join()
    });
    assert!(panicked.is_err());
    let _cookie = cookies.take().unwrap();
    assert_eq!(cookies.kernel.calls(), [CREATE; 2]);
}

/// What is said of an error.
fn said(errno: i32, siblings: bool, asked: Option<CoreScheduling>) -> Option<(Level, String)> {
    let cookies = Cookies::with(Fake::failing(errno, siblings), asked);
    let taken = cookies.take().is_ok();
    assert_eq!(
        cookies.said.load(Ordering::Relaxed),
        taken,
        "it is said if it is no error"
    );
    assert!(lock(&cookies.holders).is_empty());
    let said = cookies.without(io::Error::from_raw_os_error(errno)).ok();
    assert_eq!(said.is_some(), taken);
    said
}

#[test]
fn a_kernel_that_cannot_is_no_error() {
    for mode in [CoreScheduling::Vm, CoreScheduling::Vcpu] {
        let (level, text) = said(libc::EINVAL, true, Some(mode)).unwrap();
        assert_eq!(level, Level::Warn);
        let start = format!("--cpus core_scheduling={mode}: the host's kernel has no core");
        assert!(text.starts_with(&start), "{text}");
        assert!(text.contains("CONFIG_SCHED_CORE"), "{text}");
        // Nothing is missing where cores have one thread.
        for (errno, siblings) in [
            (libc::ENODEV, true),
            (libc::ENODEV, false),
            (libc::EINVAL, false),
        ] {
            let (level, text) = said(errno, siblings, Some(mode)).unwrap();
            assert_eq!(level, Level::Info);
            assert!(text.contains("run one thread each"), "{text}");
        }
    }
    for (errno, siblings) in [
        (libc::EINVAL, true),
        (libc::EINVAL, false),
        (libc::ENODEV, true),
    ] {
        let (level, _) = said(errno, siblings, None).unwrap();
        assert_eq!(level, Level::Debug, "nobody asked");
    }
}

#[test]
fn a_kernel_that_refuses_is_an_error_if_somebody_asked() {
    for errno in [libc::EPERM, libc::ENOMEM, libc::ESRCH] {
        let (level, text) = said(errno, true, None).unwrap();
        assert_eq!(level, Level::Warn);
        assert!(text.contains(&format!("(os error {errno})")), "{text}");
        for mode in [CoreScheduling::Vm, CoreScheduling::Vcpu] {
            assert_eq!(said(errno, true, Some(mode)), None);
        }
    }
}

/// The calling thread's cookie, as the kernel tells it.
fn own_cookie() -> io::Result<u64> {
    let mut cookie = 0u64;
    let (thread, scope): (pid_t, c_int) = (0, libc::PR_SCHED_CORE_SCOPE_THREAD);
    let to = &raw mut cookie;
    // SAFETY: the kernel writes a u64 where it is told to, and there is one.
    match unsafe {
        libc::prctl(
            libc::PR_SCHED_CORE,
            libc::PR_SCHED_CORE_GET,
            thread,
            scope,
            to,
        )
    } {
        0 => Ok(cookie),
        _ => Err(io::Error::last_os_error()),
    }
}

#[test]
fn the_kernel_sees_it_the_same_way() {
    let read = |mode| {
        let cookies = Cookies::with(Linux, Some(mode));
        in_vcpus(&cookies, || {
            own_cookie().map_err(|error| error.raw_os_error())
        })
    };
    let [vm, another, vcpu, off] = [
        CoreScheduling::Vm,
        CoreScheduling::Vm,
        CoreScheduling::Vcpu,
        CoreScheduling::Off,
    ]
    .map(read);
    match own_cookie() {
        Ok(own) => {
            assert_eq!(off, [Ok(own); VCPUS]);
            assert_eq!(vm, [vm[0]; VCPUS]);
            assert_eq!(another, [another[0]; VCPUS]);
            let mut all: Vec<_> = vcpu.into_iter().map(Result::unwrap).collect();
            all.extend([vm[0].unwrap(), another[0].unwrap(), own, 0]);
            let different: BTreeSet<_> = all.iter().collect();
            let same = usize::from(own == 0);
            assert_eq!(different.len(), all.len() - same, "{all:x?}");
        }
        // Taking one was no error, and what the kernel says is what is expected of one that cannot.
        Err(error) => {
            let errno = error.raw_os_error();
            assert!(
                matches!(errno, Some(libc::EINVAL | libc::ENODEV)),
                "{error}"
            );
            for each in [vm, another, vcpu, off] {
                assert_eq!(each, [Err(errno); VCPUS]);
            }
            let refused = Linux.sched_core(CREATE.0, CREATE.1, CREATE.2).unwrap_err();
            assert_eq!(refused.raw_os_error(), errno);
        }
    }
}
