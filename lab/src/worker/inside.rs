//! The far side of [`super::spawn`]: init, and the worker itself.

use std::{
    fs, io,
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use rustix::{
    fs::{Gid, Uid},
    mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change, mount_remount},
    process::{Signal, WaitOptions, set_parent_process_death_signal, wait},
    thread::{set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use serde::{Deserialize, Serialize};

use super::{Assignment, Receiver, Sender, Word, WorkerError, channel, failed, link};
use crate::{
    host::Driver,
    places::{Places, WORKER_ROOT},
};

pub(super) const STAGE: &str = "PATCHLAB_WORKER_STAGE";
pub(super) const STAGE_INIT: &str = "init";
const STAGE_WORKER: &str = "worker";
/// By which init tells the worker what it has.
const SEAT: &str = "PATCHLAB_WORKER_SEAT";

/// Where a worker finds what it works with.
#[derive(Debug, Serialize, Deserialize)]
struct Seat {
    places: Places,
    driver: Driver,
}

/// What a worker has.
#[derive(Debug)]
pub struct Inside {
    /// The lab's folders, as seen here; `work` is this worker's own.
    pub places: Places,
    /// Which libvirt makes its machines.
    pub driver: Driver,
    /// The way to the parent.
    pub sender: Sender,
    /// What comes from the parent; its end means that the worker is to end.
    pub receiver: Receiver,
}

/// Makes this process a worker. Must be the first act of the program's hidden subcommand, before any thread starts: rights
/// are given up per thread.
///
/// Returns twice, in two processes: `Err(code)` in init, which must end with that code, and `Ok` in the worker.
pub fn enter() -> Result<Inside, ExitCode> {
    let stage = std::env::var(STAGE).unwrap_or_default();
    let entered = match stage.as_str() {
        STAGE_INIT => init().map(Err),
        STAGE_WORKER => work().map(Ok),
        _ => Err(failed("enter", "a worker: this command is started by the lab, not by hand")(io::Error::from(
            io::ErrorKind::InvalidInput,
        ))),
    };
    entered.unwrap_or_else(|error| {
        eprintln!("{error}{}", source_of(&error));
        Err(ExitCode::FAILURE)
    })
}

fn source_of(error: &dyn std::error::Error) -> String {
    error.source().map(|source| format!(": {source}")).unwrap_or_default()
}

fn inherited() -> Result<(Sender, Receiver), WorkerError> {
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(failed("take", "the channel"))?;
    Ok(channel::pair(UnixStream::from(socket))?)
}

fn init() -> Result<ExitCode, WorkerError> {
    let (sender, mut receiver) = inherited()?;
    match prepare(&sender, &mut receiver).and_then(|seat| start_worker(&seat)) {
        // The channel is the worker's from here on; it says that it is up.
        Ok(worker) => reap_until(worker),
        Err(error) => {
            sender.send(&Word::Failed(format!("{error}{}", source_of(&error))))?;
            Ok(ExitCode::FAILURE)
        }
    }
}

fn prepare(sender: &Sender, receiver: &mut Receiver) -> Result<Seat, WorkerError> {
    let gone = || failed("hear from", "the lab")(io::Error::from(io::ErrorKind::UnexpectedEof));
    let assignment: Assignment = receiver.receive()?.ok_or_else(gone)?;
    sender.send(&Word::Namespaced)?;
    match receiver.receive()?.ok_or_else(gone)? {
        Word::Proceed => {}
        word => return Err(failed("understand", format!("{word:?}"))(io::Error::from(io::ErrorKind::InvalidData))),
    }
    link::bring_up(&assignment.network)?;
    // The user may serve ports below 1024 here, as the hosts it stands for do. A namespace's own setting.
    let ports = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    fs::write(ports, "0").map_err(failed("set", ports))?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(failed("keep to itself", "/"))?;
    let places = match &assignment.driver {
        Driver::Embedded => mount_places(&assignment)?,
        // It opens files itself, by the names that everybody else has for them; what the worker may write is what its user may.
        Driver::Foreign { .. } => assignment.places.clone(),
    };
    give_up_rights(&assignment)?;
    Ok(Seat { places, driver: assignment.driver })
}

/// Shows the worker the lab's folders under one short root: what is stored read only, its own folder to write.
fn mount_places(assignment: &Assignment) -> Result<Places, WorkerError> {
    let here = Places::of_worker();
    let host = &assignment.places;
    fs::create_dir_all(WORKER_ROOT).map_err(failed("create", WORKER_ROOT))?;
    let options = format!("mode=0755,size=64m,uid={},gid={}", assignment.uid, assignment.gid);
    let options = std::ffi::CString::new(options).unwrap_or_default();
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", WORKER_ROOT, "tmpfs", flags, Some(options.as_c_str())).map_err(failed("mount", WORKER_ROOT))?;
    let bind = |from: &Path, to: &Path| -> Result<(), WorkerError> {
        fs::create_dir_all(to).map_err(failed("create", to))?;
        mount_bind(from, to).map_err(failed("show the worker", from))
    };
    for (from, to) in [(&host.baselines, &here.baselines), (&host.artifacts, &here.artifacts), (&host.kept, &here.kept)]
    {
        bind(from, to)?;
        mount_remount(to, MountFlags::BIND | MountFlags::RDONLY | flags, "").map_err(failed("protect", to))?;
    }
    bind(&host.work, &here.work)?;
    bind(&host.cache, &here.cache)?;
    Ok(here)
}

fn give_up_rights(assignment: &Assignment) -> Result<(), WorkerError> {
    let (uid, gid) = (Uid::from_raw(assignment.uid), Gid::from_raw(assignment.gid));
    let groups: Vec<Gid> = assignment.groups.iter().copied().map(Gid::from_raw).collect();
    set_thread_groups(&groups).map_err(failed("set", "supplementary groups"))?;
    set_thread_res_gid(gid, gid, gid).map_err(failed("change to", format!("group {gid:?}")))?;
    set_thread_res_uid(uid, uid, uid).map_err(failed("change to", format!("user {uid:?}")))?;
    set_no_new_privs(true).map_err(failed("renounce", "new privileges"))?;
    // A change of user clears it.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed("follow", "the lab"))
}

fn start_worker(seat: &Seat) -> Result<u32, WorkerError> {
    let told = serde_json::to_string(seat).map_err(failed("tell the worker of", &seat.places.work))?;
    // By this link, since the way to the program may lead through folders that are closed to the user.
    let program = "/proc/self/exe";
    let channel = io::stdin().as_fd().try_clone_to_owned().map_err(failed("hand over", "the channel"))?;
    let child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(STAGE, STAGE_WORKER)
        .env(SEAT, told)
        .env("HOME", &seat.places.work)
        .stdin(Stdio::from(channel))
        .spawn()
        .map_err(failed("start", program))?;
    Ok(child.id())
}

/// Reaps everything, as process 1 must: libvirt takes a machine that nobody reaps for one that does not die.
fn reap_until(worker: u32) -> Result<ExitCode, WorkerError> {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if u32::try_from(pid.as_raw_nonzero().get()) == Ok(worker) => {
                let code = status.exit_status().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
                return Ok(ExitCode::from(code));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed("wait for", "the worker")(error)),
        }
    }
}

fn work() -> Result<Inside, WorkerError> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed("follow", "init"))?;
    let (sender, receiver) = inherited()?;
    let told = std::env::var(SEAT).unwrap_or_default();
    let Seat { places, driver } = serde_json::from_str(&told).map_err(failed("understand", SEAT))?;
    sender.send(&Word::Up)?;
    Ok(Inside { places, driver, sender, receiver })
}
