//! vCPU threads: run, handle exits, be stopped.
#![expect(
    unsafe_code,
    reason = "reads kvm_run's exit union and interrupts vCPU threads with a signal"
)]

use std::io;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use vmm_sys_util::signal::register_signal_handler;

use super::affinity::bind_thread;
use super::areas::DeviceAreas;
use super::control::{Control, Ending};
use super::core_scheduling::Cookies;
use super::devices::Consoles;
use super::gate::{Errand, Member, Place, Seat};
use super::isa;
use super::report::{FailureReason, VcpuFailure};
use devices::bus::Bus;

/// What vCPUs reach by leaving the guest.
pub struct Buses {
    /// Memory-mapped registers.
    pub mmio: Arc<Bus>,
    /// x86 I/O ports; empty elsewhere.
    pub pio: Arc<Bus>,
    /// x86: who is told of the end of a level-triggered interrupt.
    #[cfg(target_arch = "x86_64")]
    pub ioapic: Option<Arc<devices::ioapic::IoApic>>,
}

impl Buses {
    /// Two buses, and no interrupt controller behind them yet.
    pub fn new(mmio: Bus, pio: Bus) -> Self {
        Self {
            mmio: Arc::new(mmio),
            pio: Arc::new(pio),
            #[cfg(target_arch = "x86_64")]
            ioapic: None,
        }
    }
}

/// Shared by all vCPUs of one machine.
pub struct VcpuContext {
    /// Where exits go.
    pub buses: Buses,
    /// What of guest memory belongs to devices, and may go.
    pub areas: Arc<DeviceAreas>,
    /// Where the end of the machine is announced.
    pub control: Arc<Control>,
    /// Whose readers vCPUs wait for.
    pub consoles: Consoles,
    /// The VM, which has the guest's time on x86.
    pub vm: Arc<VmFd>,
    /// The time of a paused guest.
    pub time: isa::GuestTime,
}

/// Interrupts `KVM_RUN`: the handler has nothing to do, its arrival is what counts.
extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Prepares the process for kicks; called once before the first vCPU runs.
pub fn prepare_kicks() -> io::Result<()> {
    register_signal_handler(libc::SIGRTMIN(), on_kick).map_err(io::Error::from)
}

/// The first page of a vCPU's `kvm_run`, mapped a second time so that another thread can set
/// `immediate_exit` however the vCPU's own thread ends.
///
/// Neither is a kick lost nor does one keep a vCPU from running, by two rules:
/// - who wants something writes down what (in the [`Seat`]), then sets the flag, then sends the signal;
/// - the vCPU's thread clears the flag when `KVM_RUN` was interrupted, and only then, and after that
///   looks at what is wanted, always, before `KVM_RUN` again.
///
/// All of that is in one order (`SeqCst`). If the thread clears a flag that was set, what was wanted was
/// written down before, and the thread is about to look. If the flag is set after it was cleared, the next
/// `KVM_RUN` returns at once, and the thread clears and looks again. So a set flag is cleared by the next
/// `KVM_RUN`: the worst that comes of a kick is one in vain, where its reason was already seen.
/// The signal is for a vCPU that is in the guest, or past KVM's look at the flag. One that came before has
/// done nothing, but then KVM sees the flag. Neither helps where the thread is about to wait in another
/// system call: who needs it to stop kicks again and again.
struct RunPage(*mut libc::c_void);

/// Time between kicks of a vCPU that does not stop.
const KICK_AGAIN: Duration = Duration::from_millis(1);
const RUN_PAGE: usize = 4096;
/// Offset of `immediate_exit` in `struct kvm_run`.
const IMMEDIATE_EXIT: usize = std::mem::offset_of!(kvm_bindings::kvm_run, immediate_exit);

// SAFETY: the page is only accessed through one atomic byte.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    fn map(vcpu: &VcpuFd) -> io::Result<Self> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let fd = vcpu.as_raw_fd();
        // SAFETY: a new shared mapping of the vCPU's run structure; KVM allows any number.
        let page = unsafe { libc::mmap(null_mut(), RUN_PAGE, prot, libc::MAP_SHARED, fd, 0) };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(page))
    }

    /// Makes `KVM_RUN` return as soon as it is called.
    fn exit_immediately(&self) {
        self.immediate_exit().store(1, Ordering::SeqCst);
    }

    /// Undoes [`RunPage::exit_immediately`]; for the vCPU's own thread.
    fn run_again(&self) {
        self.immediate_exit().store(0, Ordering::SeqCst);
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        let byte = self.0.wrapping_byte_add(IMMEDIATE_EXIT).cast();
        // SAFETY: the byte lies in the page, which lives as long as `self`; KVM and we access it
        // as a single byte.
        unsafe { AtomicU8::from_ptr(byte) }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` and unmapped only here.
        unsafe { libc::munmap(self.0, RUN_PAGE) };
    }
}

/// How the host schedules a vCPU's thread.
pub struct Scheduling {
    /// Host CPUs that it may run on; empty if it may run anywhere.
    pub host_cpus: Vec<u32>,
    /// Where it takes what keeps other threads from its core.
    pub cookies: Arc<Cookies>,
}

/// A vCPU whose thread runs.
pub struct VcpuThread {
    page: Arc<RunPage>,
    seat: Arc<Seat>,
    thread: JoinHandle<()>,
}

impl VcpuThread {
    /// Starts a thread under `scheduling` that first runs `prepare` and then the vCPU, until the
    /// machine stops.
    pub fn start<P>(
        index: u32,
        mut vcpu: VcpuFd,
        context: Arc<VcpuContext>,
        place: Place,
        scheduling: Scheduling,
        prepare: P,
    ) -> io::Result<Self>
    where
        P: FnOnce(&mut VcpuFd) -> Result<(), FailureReason> + Send + 'static,
    {
        let page = Arc::new(RunPage::map(&vcpu)?);
        let seat = Arc::clone(place.seat());
        let own_page = Arc::clone(&page);
        let thread = thread::Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(move || {
                let outcome = catch_unwind(AssertUnwindSafe(|| {
                    let Scheduling { host_cpus, cookies } = &scheduling;
                    bind_thread(host_cpus).map_err(FailureReason::Affinity)?;
                    let _cookie = cookies.take().map_err(FailureReason::CoreScheduling)?;
                    prepare(&mut vcpu)?;
                    run(&mut vcpu, &own_page, &context, &place)
                }));
                // The panic itself was reported where it happened; the machine must still end.
                let outcome = outcome.unwrap_or(Err(FailureReason::Panicked));
                if let Err(reason) = outcome {
                    let failure = VcpuFailure::collect(index, reason, &mut vcpu);
                    context.control.end(Ending::Failed(Box::new(failure)));
                }
            })?;
        Ok(Self { page, seat, thread })
    }

    /// Whose thread it is.
    pub fn member(&self) -> Member {
        self.seat.member()
    }

    /// Gives the vCPU an NMI, as soon as it does not wait for anything.
    pub fn nmi(&self) {
        self.seat.ask_for_nmi();
        self.kick();
    }

    /// Makes the vCPU leave the guest, and its thread look at what is asked of it.
    pub fn kick(&self) {
        use std::os::unix::thread::JoinHandleExt;
        // The flag covers a vCPU that is about to enter the guest, the signal one that is in it.
        self.page.exit_immediately();
        // SAFETY: the thread has not been joined, so its id is valid.
        unsafe { libc::pthread_kill(self.thread.as_pthread_t(), libc::SIGRTMIN()) };
    }

    /// Waits for the thread to end.
    pub fn join(self) {
        // A kick is lost on a vCPU that was just about to wait for somebody else, such as the
        // reader of its console.
        while !self.thread.is_finished() {
            self.kick();
            thread::sleep(KICK_AGAIN);
        }
        if self.thread.join().is_err() {
            log::error!("a vCPU thread panicked");
        }
    }
}

fn run(
    vcpu: &mut VcpuFd,
    page: &RunPage,
    context: &VcpuContext,
    place: &Place,
) -> Result<(), FailureReason> {
    while !place.seat().is_asked() || attend(vcpu, context, place) {
        let replaced = context.areas.replaced();
        let exit = match vcpu.run() {
            Ok(VcpuExit::MemoryFault { gpa, .. }) if context.areas.recheck(replaced, Some(gpa)) => {
                continue;
            }
            Ok(exit) => exit,
            Err(error) if error.errno() == libc::EINTR => {
                page.run_again();
                continue;
            }
            Err(error) if error.errno() == libc::EAGAIN => continue,
            Err(error)
                if error.errno() == libc::EFAULT && context.areas.recheck(replaced, None) =>
            {
                continue;
            }
            Err(error) => return Err(FailureReason::Run(error.into())),
        };
        match exit {
            VcpuExit::MmioRead(address, data) => {
                if !context.buses.mmio.read(address, data) {
                    data.fill(0xff);
                }
            }
            VcpuExit::MmioWrite(address, data) => {
                context.buses.mmio.write(address, data);
            }
            VcpuExit::IoIn(..) | VcpuExit::IoOut(..) => port_access(vcpu, &context.buses.pio),
            #[cfg(target_arch = "x86_64")]
            VcpuExit::IoapicEoi(vector) => {
                if let Some(ioapic) = &context.buses.ioapic {
                    ioapic.end_of_interrupt(vector);
                }
            }
            VcpuExit::SystemEvent(kind, data) => {
                let ending = system_event(kind, data)?;
                context.control.end(ending);
                return Ok(());
            }
            // A signal or a spurious wake-up: nothing to do but enter again.
            VcpuExit::Intr | VcpuExit::IrqWindowOpen => {}
            exit => return Err(FailureReason::of_exit(&exit)),
        }
    }
    Ok(())
}

/// Sees to what is asked of a vCPU's thread, until nothing is. Returns whether the vCPU is to run again.
fn attend(vcpu: &VcpuFd, context: &VcpuContext, place: &Place) -> bool {
    let seat = place.seat();
    while seat.is_asked() {
        if seat.is_stopping() {
            return false;
        }
        if seat.is_pausing() {
            place.park(|errand| match errand {
                Errand::StopTime => context.time.stop(&context.vm, vcpu),
                Errand::StartTime => context.time.start(&context.vm, vcpu),
            });
            isa::after_pause(vcpu);
            context.consoles.settle();
        } else if seat.take_nmi()
            && let Err(error) = isa::inject_nmi(vcpu)
        {
            log::warn!("{} is not given an NMI: {error}", seat.member());
        }
    }
    true
}

/// PSCI SYSTEM_OFF and SYSTEM_RESET arrive as these.
fn system_event(kind: u32, data: &[u64]) -> Result<Ending, FailureReason> {
    match kind {
        kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => Ok(Ending::PowerOff),
        kvm_bindings::KVM_SYSTEM_EVENT_RESET => Ok(Ending::Reset),
        kind => Err(FailureReason::SystemEvent {
            kind,
            data: data.to_vec(),
        }),
    }
}

/// Carries out a port access. A string instruction (`rep outsb`) arrives as one exit with several
/// items for the same port, which the bus sees one after the other.
fn port_access(vcpu: &mut VcpuFd, bus: &Bus) {
    let run = vcpu.get_kvm_run();
    // SAFETY: the exit reason was KVM_EXIT_IO, so the kernel filled in this member.
    let io = unsafe { run.__bindgen_anon_1.io };
    let base = std::ptr::from_mut(run).cast::<u8>();
    let size = usize::from(io.size).max(1);
    for item in 0..io.count as usize {
        let at = base.wrapping_add(io.data_offset as usize + item * size);
        // SAFETY: the kernel places `count` items of `size` bytes at `data_offset`, inside the
        // mapping of the run structure, and does not touch them until the next KVM_RUN.
        let data = unsafe { std::slice::from_raw_parts_mut(at, size) };
        let port = u64::from(io.port);
        if u32::from(io.direction) == kvm_bindings::KVM_EXIT_IO_OUT {
            bus.write(port, data);
        } else if !bus.read(port, data) {
            data.fill(0xff);
        }
    }
}
