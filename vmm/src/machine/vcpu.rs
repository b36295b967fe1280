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
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::register_signal_handler;

use super::affinity::bind_thread;
use super::areas::DeviceAreas;
use super::control::{Control, Ending};
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
    /// Set when vCPUs must not enter the guest again.
    pub stopping: AtomicBool,
}

/// Interrupts `KVM_RUN`: the handler has nothing to do, its arrival is what counts.
extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Prepares the process for kicks; called once before the first vCPU runs.
pub fn prepare_kicks() -> io::Result<()> {
    register_signal_handler(libc::SIGRTMIN(), on_kick).map_err(io::Error::from)
}

/// The first page of a vCPU's `kvm_run`, mapped a second time so that another thread can set
/// `immediate_exit` however the vCPU's own thread ends.
struct RunPage(*mut libc::c_void);

/// Time between kicks of a vCPU that does not stop.
const KICK_AGAIN: Duration = Duration::from_millis(1);
const RUN_PAGE: usize = 4096;
/// Offset of `immediate_exit` in `struct kvm_run`.
const IMMEDIATE_EXIT: usize = std::mem::offset_of!(kvm_bindings::kvm_run, immediate_exit);

// SAFETY: the page is only accessed through one atomic byte.
unsafe impl Send for RunPage {}

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

    fn exit_immediately(&self) {
        let byte = self.0.wrapping_byte_add(IMMEDIATE_EXIT).cast();
        // SAFETY: the byte lies in the page, which lives as long as `self`; KVM and we access it
        // as a single byte.
        let flag = unsafe { AtomicU8::from_ptr(byte) };
        flag.store(1, Ordering::SeqCst);
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` and unmapped only here.
        unsafe { libc::munmap(self.0, RUN_PAGE) };
    }
}

/// A vCPU whose thread runs.
pub struct VcpuThread {
    page: RunPage,
    thread: JoinHandle<()>,
}

impl VcpuThread {
    /// Starts a thread on `host_cpus` that first runs `prepare` and then the vCPU, until the
    /// machine stops.
    pub fn start<P>(
        index: u32,
        mut vcpu: VcpuFd,
        context: Arc<VcpuContext>,
        host_cpus: Vec<u32>,
        prepare: P,
    ) -> io::Result<Self>
    where
        P: FnOnce(&mut VcpuFd) -> Result<(), FailureReason> + Send + 'static,
    {
        let page = RunPage::map(&vcpu)?;
        let thread = thread::Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(move || {
                let outcome = catch_unwind(AssertUnwindSafe(|| {
                    bind_thread(&host_cpus).map_err(FailureReason::Affinity)?;
                    prepare(&mut vcpu)?;
                    run(&mut vcpu, &context)
                }));
                // The panic itself was reported where it happened; the machine must still end.
                let outcome = outcome.unwrap_or(Err(FailureReason::Panicked));
                if let Err(reason) = outcome {
                    let failure = VcpuFailure::collect(index, reason, &mut vcpu);
                    context.control.end(Ending::Failed(Box::new(failure)));
                }
            })?;
        Ok(Self { page, thread })
    }

    /// Makes the vCPU leave the guest; it does not enter again once `stopping` is set.
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

fn run(vcpu: &mut VcpuFd, context: &VcpuContext) -> Result<(), FailureReason> {
    while !context.stopping.load(Ordering::SeqCst) {
        let replaced = context.areas.replaced();
        let exit = match vcpu.run() {
            Ok(VcpuExit::MemoryFault { gpa, .. }) if context.areas.recheck(replaced, Some(gpa)) => {
                continue;
            }
            Ok(exit) => exit,
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => continue,
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
