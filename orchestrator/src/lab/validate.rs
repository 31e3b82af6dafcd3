//! `lab validate`, from outside: which baselines, one worker each, as many at once as fit, a record of everything, and the verdicts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::mpsc::{self, Sender},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use patchlab_lab::{
    Baseline, LabHost,
    baseline::{Baselines, StoreError},
    control::Controls,
    relief,
    report::{BaselineReport, Report, SCHEMA},
    room::Bytes,
    runs::{Asked, Happening, Limits, OnBaseline, Record, Recording, Runs, Scope},
    scenario::Scenario,
    verdict::{Judged, Judgement, overall},
};
use patchlab_protocol::{document::Order, envelope::digest_of};

use super::{
    booking, budget,
    control::{Control, Programs},
    halt::Halt,
    pair::{Came, Pair, limited},
    pool::{Lender, Pool},
    schedule::{self, Budgets, Running, Work},
    standing::{Follows, Standing},
    worker::{Manner, Tell},
};
use crate::{legible::millis, place::Data};

/// The baselines that an order is validated on: those named, or every newest one of the order's class that represents one of its
/// packages; of a script, every newest one of its class.
pub fn baselines(data: &Data, order: &Order, named: &[String]) -> anyhow::Result<Vec<Baseline>> {
    let store = Baselines::open(&data.lab());
    let is_class = |baseline: &Baseline| {
        let os = &baseline.record.os;
        (&os.family, &os.release, &os.arch) == (&order.class.family, &order.class.release, &order.class.arch)
    };
    if !named.is_empty() {
        let mut chosen = named.iter().map(|name| store.get(name)).collect::<Result<Vec<_>, _>>()?;
        // One may be named in several ways.
        let mut known = BTreeSet::new();
        chosen.retain(|baseline| known.insert(baseline.digest));
        if let Some(other) = chosen.iter().find(|baseline| !is_class(baseline)) {
            bail!("order {} is for {}, baseline {} is not", order.id, order.class, other.full_name());
        }
        return Ok(chosen);
    }
    let changes = |name: &String| order.install.iter().any(|file| file.name == *name);
    let all = store.list()?;
    let newest = |baseline: &Baseline| {
        !all.iter()
            .any(|other| other.record.name == baseline.record.name && other.record.number > baseline.record.number)
    };
    // A script may change anything: every baseline of its class has something to say.
    let speaks =
        |baseline: &Baseline| order.script.is_some() || baseline.record.represents.packages.iter().any(&changes);
    Ok(all.iter().filter(|baseline| newest(baseline) && is_class(baseline) && speaks(baseline)).cloned().collect())
}

/// The stored baselines of machines that scenarios ask for beside the one under test, by the names that they give them.
///
/// # Errors
/// The store cannot be read.
pub fn others(store: &Baselines, scenarios: &[Scenario]) -> anyhow::Result<BTreeMap<String, Baseline>> {
    let wanted: BTreeSet<&str> = scenarios.iter().flat_map(Scenario::other_baselines).collect();
    let mut found = BTreeMap::new();
    for name in wanted {
        match store.get(name) {
            Ok(baseline) => drop(found.insert(name.to_owned(), baseline)),
            // Which scenarios are skipped for that is said where they are run.
            Err(StoreError::Unknown { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

/// Orders to validate, each on baselines of its own, with the same scenarios in the same manner.
#[derive(Debug, Clone)]
pub struct Batch<'a> {
    /// Where the lab is.
    pub data: &'a Data,
    /// The orders and their baselines.
    pub orders: &'a [(Order, Vec<Baseline>)],
    /// The scenarios.
    pub scenarios: &'a [Scenario],
    /// Whole orders, or parts.
    pub scope: Scope,
    /// The run that this one repeats.
    pub retry_of: Option<String>,
    /// How.
    pub manner: Manner,
    /// How many validations at once; as many as fit unless given.
    pub jobs: Option<usize>,
    /// The hosts that lend machines.
    pub pool: &'a Pool,
}

/// One order on one baseline, for whoever watches.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The order.
    pub order: &'a str,
    /// The baseline's full name.
    pub baseline: &'a str,
}

/// What a watcher is told.
#[derive(Debug)]
pub enum Seen<'a> {
    /// All is about to begin.
    Begins {
        /// How many validations there are.
        all: usize,
        /// How many of them run at once, at most.
        jobs: usize,
    },
    /// This went, since there was too little room.
    MadeRoom(&'a str),
    /// A host lends nothing, or nothing any more: why.
    HostOut(&'a str, &'a str),
    /// A validation begins, on this host where there is a choice.
    Started(Subject<'a>, Option<&'a str>),
    /// It is to be made once more: its host is out, or what was remembered of its control did not do.
    Requeued(Subject<'a>),
    /// It says something.
    Told(Subject<'a>, &'a Tell),
    /// It has ended.
    Ended(Subject<'a>, &'a BaselineReport, &'a Record),
    /// It was ended, with everything else.
    Stopped(Subject<'a>),
    /// How long the rest will take.
    Remaining(Duration),
    /// A signal ends all that runs.
    Interrupted,
}

/// How an order's validation ended.
#[derive(Debug)]
pub struct Validated {
    /// Its verdict; of an interrupted one what was known, as the lab's failure.
    pub report: Report,
    /// The record it leaves.
    pub record: Record,
}

/// What threads tell the one that decides.
enum Word {
    Told(usize, Box<Tell>),
    /// What came of it on the host of this number.
    Ended(usize, usize, anyhow::Result<Box<BaselineReport>>),
    /// It has not ended, since its host, of this number, is gone: why.
    HostGone(usize, usize, String),
    /// It has not ended, since what is remembered of its control does not do: why.
    Disagrees(usize, String),
    Interrupted,
}

/// Validates all orders of a batch.
pub fn validate(batch: &Batch<'_>, observer: &mut dyn FnMut(Seen<'_>)) -> anyhow::Result<Vec<Validated>> {
    let halt = Halt::default();
    let (tell, words) = mpsc::channel();
    let waker = tell.clone();
    // Nobody listens any more when all is done.
    halt.on_signals(move || drop(waker.send(Word::Interrupted)))?;
    let others = others(&Baselines::open(&batch.data.lab()), batch.scenarios)?;
    let needs = |baseline: &Baseline, control| {
        budget::needs(baseline, (batch.manner.keep, control), (batch.scenarios, &others))
    };
    let all = batch.orders.iter().flat_map(|(_, baselines)| baselines);
    let all: Vec<_> = all.map(|baseline| needs(baseline, Control::Beside)).collect();
    let most = all.iter().map(|needs| needs.disk).max().unwrap_or(0);
    let places = batch.data.lab();
    // Those whose files are on another disk gain nothing by room on this one.
    if batch.pool.hosts().iter().any(|host| host.places(&places).work == places.work) {
        match relief::require(&places, Bytes(most), "a validation") {
            Ok(gone) => gone.iter().for_each(|what| observer(Seen::MadeRoom(what))),
            Err(error) if batch.pool.is_here_alone() => return Err(error.into()),
            // Another host may have room.
            Err(_) => {}
        }
    }
    let hosts = batch.pool.look(batch.data);
    for lender in &hosts {
        if let Err(reason) = &lender.found {
            observer(Seen::HostOut(&lender.host.name, reason));
        }
    }
    let budgets = budget::budgets(&hosts, batch.jobs, &all)?;
    let runs = Runs::open(&batch.data.lab());
    runs.retain(Limits::default(), patchlab_lab::gc::Mode::Collect)?;
    let (known, _) = runs.list()?;
    let programs = Programs::of(&batch.manner, &batch.scope)?;
    let recordings = batch.orders.iter().map(|order| begin(batch, &runs, order)).collect::<anyhow::Result<Vec<_>>>()?;

    let names: Vec<Vec<String>> =
        batch.orders.iter().map(|(_, baselines)| baselines.iter().map(Baseline::full_name).collect()).collect();
    let mut pairs = Vec::new();
    for (number, ((order, baselines), names)) in batch.orders.iter().zip(&names).enumerate() {
        for (baseline, name) in baselines.iter().zip(names) {
            let expected = budget::expected(&known, &digest_of(order.clone()), name);
            let work = Work { order: number, expected, needs: all[pairs.len()], avoids: &[] };
            let (data, scenarios, scope, manner) = (batch.data, batch.scenarios, &batch.scope, batch.manner);
            let (recording, halt, others) = (&recordings[number], &halt, &others);
            let key = programs.as_ref().map(|programs| programs.key(baseline, (scenarios, others), &manner));
            let alone = Work { needs: needs(baseline, Control::Remembered), ..work };
            let pair = Pair { data, order, baseline, name, scenarios, others, scope, manner, key, recording, halt };
            pairs.push(Place { beside: work, alone, pair });
        }
    }
    let (ended, validated) = (BTreeMap::new(), BTreeMap::new());
    let (pairs, recordings, halt) = (&pairs, &recordings, &halt);
    let out = hosts.iter().filter_map(Lender::out).collect();
    let (controls, disagreed) = (Controls::open(&batch.data.lab()), BTreeSet::new());
    let (standing, broken) = (Standing::default(), BTreeMap::new());
    let mut floor = Floor {
        batch,
        recordings,
        pairs,
        controls,
        disagreed,
        budgets,
        out,
        standing,
        broken,
        halt,
        tell,
        observer,
        ended,
        validated,
    };
    floor.run(&words);
    floor.validated.into_values().collect()
}

fn begin(batch: &Batch<'_>, runs: &Runs, (order, baselines): &(Order, Vec<Baseline>)) -> anyhow::Result<Recording> {
    let on = |baseline: &Baseline| OnBaseline { name: baseline.full_name(), digest: baseline.digest };
    let asked = Asked {
        id: (&order.id, digest_of(order.clone())),
        order,
        baselines: baselines.iter().map(on).collect(),
        scenarios: batch.scenarios,
        manner: &batch.manner,
        scope: batch.scope.clone(),
        retry_of: batch.retry_of.clone(),
    };
    runs.begin(asked).context("begin the record of the run")
}

fn broken(baseline: &Baseline, reason: String) -> BaselineReport {
    BaselineReport { reason, ..BaselineReport::begun(baseline.full_name(), baseline.digest) }
}

/// A validation that is to be made.
struct Place<'a> {
    /// What it takes with a control of its own.
    beside: Work<'static>,
    /// What it takes without.
    alone: Work<'static>,
    pair: Pair<'a>,
}

impl Place<'_> {
    /// What it takes with this control.
    fn work(&self, control: Control) -> Work<'static> {
        match control {
            Control::Beside => self.beside,
            Control::Remembered => self.alone,
        }
    }
}

/// Where validations run: starts what fits, listens, and writes down what it hears.
struct Floor<'a, 'o> {
    batch: &'a Batch<'a>,
    recordings: &'a [Recording],
    pairs: &'a [Place<'a>],
    /// What is remembered of controls.
    controls: Controls,
    /// The validations, by their places in `pairs`, for which that does not do.
    disagreed: BTreeSet<usize>,
    /// What there is to give; of hosts that are gone, nothing.
    budgets: Budgets,
    /// Those that are, and why.
    out: Vec<String>,
    /// How hosts did.
    standing: Standing,
    /// What came of those, by their places in `pairs`, that are to be made once more on another host.
    broken: BTreeMap<usize, anyhow::Result<BaselineReport>>,
    halt: &'a Halt,
    tell: Sender<Word>,
    observer: &'o mut dyn FnMut(Seen<'_>),
    /// What came of each, by its place in `pairs`.
    ended: BTreeMap<usize, anyhow::Result<BaselineReport>>,
    /// The orders that have ended, by their numbers.
    validated: BTreeMap<usize, anyhow::Result<Validated>>,
}

impl Floor<'_, '_> {
    /// Until all orders have ended; when all is to end, as soon as what runs has.
    fn run(&mut self, words: &mpsc::Receiver<Word>) {
        self.run_pairs(words);
        for number in 0..self.batch.orders.len() {
            if !self.validated.contains_key(&number) {
                let ended = if self.halt.is_called() { self.stop(number) } else { self.judge(number) };
                self.validated.insert(number, ended);
            }
        }
    }

    /// The verdict on an order, and the end of its record.
    fn judge(&self, number: usize) -> anyhow::Result<Validated> {
        let (order, _) = &self.batch.orders[number];
        let of_order = self.pairs.iter().enumerate().filter(|(_, one)| one.beside.order == number);
        let found = of_order.filter_map(|(place, one)| match self.ended.get(&place)? {
            Ok(report) => Some(report.clone()),
            Err(error) => Some(broken(one.pair.baseline, format!("{error:#}"))),
        });
        let baselines: Vec<BaselineReport> = found.collect();
        let Judged { judgement, reason } = overall(&baselines);
        let (verdict, reason) = match limited(judgement, &self.batch.scope) {
            Some(reason) => (Judgement::Missing, reason),
            None => (judgement, reason),
        };
        let (id, digest) = (order.id.clone(), digest_of(order.clone()));
        let total_ms = self.recordings[number].ms();
        let report =
            Report { schema: SCHEMA, order: digest, id, verdict, reason, baselines, total_ms, bisection: None };
        let record = self.recordings[number].judged(&report)?;
        Ok(Validated { report, record })
    }

    /// The end of the record of an order that has no verdict.
    fn stop(&self, number: usize) -> anyhow::Result<Validated> {
        let recording = &self.recordings[number];
        let record = recording.interrupted(&format!("interrupted after {}", millis(recording.ms())))?;
        // As everybody else will read it.
        let report = Runs::open(&self.batch.data.lab()).get(&record.id)?.report()?;
        Ok(Validated { report, record })
    }

    /// Until all have ended, or those that run when all is to end.
    fn run_pairs(&mut self, words: &mpsc::Receiver<Word>) {
        let pairs = self.pairs;
        (self.observer)(Seen::Begins { all: pairs.len(), jobs: self.budgets.all.jobs.min(pairs.len()) });
        let mut waiting: Vec<usize> = (0..pairs.len()).collect();
        let mut running: Vec<OnHost> = Vec::new();
        std::thread::scope(|scope| {
            loop {
                while let Some((place, host)) = self.next(&waiting, &running) {
                    let place = waiting.remove(place);
                    let control = self.control(place);
                    let work = pairs[place].work(control);
                    running.push(OnHost { place, host, work, since: Instant::now() });
                    let lender = &self.batch.pool.hosts()[host];
                    self.starts(&pairs[place].pair, lender);
                    let tell = self.tell.clone();
                    let booked = booking::book(self.batch.data, lender, work.needs);
                    scope.spawn(move || {
                        validate_on(&pairs[place].pair, (place, host, lender), control, &tell);
                        drop(booked);
                    });
                }
                if running.is_empty() {
                    // Where all is to end, none of them waits for anything.
                    waiting.drain(..).for_each(|place| self.has_no_host(place));
                    return;
                }
                self.say_remaining(&waiting, &running);
                match words.recv() {
                    Ok(Word::Told(place, what)) => self.told(place, &what),
                    Ok(Word::Ended(place, host, result)) => {
                        running.retain(|other| other.place != place);
                        let result = result.map(|report| *report);
                        match self.follows((place, host), &result) {
                            Follows::Ends => self.has_ended(place, result),
                            moves => {
                                self.moves((place, host), moves, result);
                                waiting.insert(waiting.partition_point(|other| *other < place), place);
                            }
                        }
                    }
                    Ok(Word::HostGone(place, host, reason)) => {
                        running.retain(|other| other.place != place);
                        self.host_gone(place, host, &reason);
                        // As it was: what is waiting is in the order given.
                        waiting.insert(waiting.partition_point(|other| *other < place), place);
                    }
                    Ok(Word::Disagrees(place, reason)) => {
                        running.retain(|other| other.place != place);
                        self.disagrees(place, &reason);
                        waiting.insert(waiting.partition_point(|other| *other < place), place);
                    }
                    Ok(Word::Interrupted) => {
                        waiting.clear();
                        (self.observer)(Seen::Interrupted);
                    }
                    // Never: this side holds a sender itself.
                    Err(mpsc::RecvError) => return,
                }
            }
        });
    }

    fn next(&self, waiting: &[usize], running: &[OnHost]) -> Option<(usize, usize)> {
        if self.halt.is_called() {
            return None;
        }
        let waiting: Vec<Work<'_>> = waiting.iter().map(|place| self.work(*place)).collect();
        let running: Vec<Running<'_>> = running.iter().map(OnHost::running).collect();
        // One always runs: waiting for others may be for ever.
        let budgets = match running[..] {
            [] => self.budgets.clone(),
            _ => booking::beside_others(self.batch.data, self.batch.pool, &self.budgets),
        };
        schedule::next(&waiting, &running, &self.ended_of_orders(), &budgets)
    }

    /// How many have ended, by the numbers of orders.
    fn ended_of_orders(&self) -> Vec<usize> {
        let mut ended = vec![0; self.batch.orders.len()];
        self.ended.keys().for_each(|place| ended[self.pairs[*place].beside.order] += 1);
        ended
    }

    /// The control that a validation would have if it started now.
    fn control(&self, place: usize) -> Control {
        let key = self.pairs[place].pair.key.filter(|key| !self.disagreed.contains(&place) && self.controls.has(key));
        if key.is_some() { Control::Remembered } else { Control::Beside }
    }

    /// What it would take.
    fn work(&self, place: usize) -> Work<'_> {
        Work { avoids: self.standing.avoided(place), ..self.pairs[place].work(self.control(place)) }
    }

    fn say_remaining(&mut self, waiting: &[usize], running: &[OnHost]) {
        let waiting: Vec<Work<'_>> = waiting.iter().map(|place| self.work(*place)).collect();
        let running: Vec<(Running<'_>, Duration)> =
            running.iter().map(|on| (on.running(), on.since.elapsed())).collect();
        let remaining = schedule::remaining(&waiting, &running, &self.ended_of_orders(), &self.budgets);
        (self.observer)(Seen::Remaining(remaining));
    }

    fn starts(&mut self, pair: &Pair<'_>, host: &LabHost) {
        let told = (!self.batch.pool.is_here_alone()).then_some(host.name.as_str());
        if let Some(name) = told {
            self.write_down(pair, Happening::Started { host: name.to_owned() });
        }
        (self.observer)(Seen::Started(subject(pair), told));
    }

    /// What follows when one came to this on this host.
    fn follows(&mut self, (place, host): (usize, usize), result: &anyhow::Result<BaselineReport>) -> Follows {
        if self.halt.is_called() {
            return Follows::Ends;
        }
        if result.as_ref().is_ok_and(|report| report.verdict != Judgement::LabError) {
            self.standing.held(host);
            return Follows::Ends;
        }
        let work = self.pairs[place].work(self.control(place));
        self.standing.broke(place, host, &work, &self.budgets)
    }

    /// It broke on this host, and is to be made on another.
    fn moves(&mut self, (place, host): (usize, usize), how: Follows, result: anyhow::Result<BaselineReport>) {
        let reason = match &result {
            Ok(report) => report.reason.clone(),
            Err(error) => format!("{error:#}"),
        };
        let name = &self.batch.pool.hosts()[host].name;
        self.told(place, &Tell::Note(format!("it broke on host {name} ({reason}): once more, on another host")));
        if let Follows::MovesAndHostIsOut(many) = how {
            self.take_out(host, &format!("it broke {many} validations in a row, the last with: {reason}"));
        }
        self.broken.insert(place, result);
        (self.observer)(Seen::Requeued(subject(&self.pairs[place].pair)));
    }

    /// It waited for a host, and none is left: what it came to on another counts, if it came to anything.
    fn has_no_host(&mut self, place: usize) {
        let none = || Err(anyhow!("no host is left that could lend machines to it: {}", self.out.join("; ")));
        let result = self.broken.remove(&place).unwrap_or_else(none);
        self.has_ended(place, result);
    }

    fn take_out(&mut self, host: usize, reason: &str) {
        // Several may find out.
        if self.budgets.hosts[host].take().is_some() {
            let name = &self.batch.pool.hosts()[host].name;
            self.out.push(format!("{name}: {reason}"));
            (self.observer)(Seen::HostOut(name, reason));
        }
    }

    /// Takes a host out, and says what becomes of what ran there.
    fn host_gone(&mut self, place: usize, host: usize, reason: &str) {
        let name = &self.batch.pool.hosts()[host].name;
        self.take_out(host, reason);
        let pair = &self.pairs[place].pair;
        self.write_down(pair, Happening::HostGone { host: name.clone(), reason: reason.to_owned() });
        (self.observer)(Seen::Requeued(subject(pair)));
    }

    /// Says why it is to be validated with a control beside the patched clone.
    fn disagrees(&mut self, place: usize, reason: &str) {
        self.disagreed.insert(place);
        let note = format!("not as the control that is remembered ({reason}): once more, with a control beside it");
        self.told(place, &Tell::Note(note));
        (self.observer)(Seen::Requeued(subject(&self.pairs[place].pair)));
    }

    fn told(&mut self, place: usize, tell: &Tell) {
        let pair = &self.pairs[place].pair;
        if let Some(what) = happening(tell) {
            self.write_down(pair, what);
        }
        (self.observer)(Seen::Told(subject(pair), tell));
    }

    fn has_ended(&mut self, place: usize, result: anyhow::Result<BaselineReport>) {
        let pair = &self.pairs[place].pair;
        let report = match &result {
            Ok(report) => report.clone(),
            Err(error) => broken(pair.baseline, format!("{error:#}")),
        };
        // What was ended in the middle found nothing that may be taken for its result.
        if self.halt.is_called() {
            self.write_down(pair, Happening::Interrupted);
            (self.observer)(Seen::Stopped(subject(pair)));
        } else {
            self.write_down(pair, Happening::Ended { verdict: report.verdict, reason: report.reason.clone() });
            if let Err(error) = pair.recording.found(&report) {
                tracing::warn!(%error, "the record is not whole");
            }
            (self.observer)(Seen::Ended(subject(pair), &report, pair.recording.record()));
        }
        self.ended.insert(place, result);
        let number = self.pairs[place].beside.order;
        let mut places = (0..self.pairs.len()).filter(|place| self.pairs[*place].beside.order == number);
        // Its verdict does not wait for other orders', and is not lost with them.
        if !self.halt.is_called() && places.all(|place| self.ended.contains_key(&place)) {
            let ended = self.judge(number);
            self.validated.insert(number, ended);
        }
    }

    /// A record that cannot be written changes no verdict: it is told.
    fn write_down(&self, pair: &Pair<'_>, what: Happening) {
        if let Err(error) = pair.recording.happened(&pair.baseline.full_name(), what) {
            tracing::warn!(%error, "the record is not whole");
        }
    }
}

/// A validation, by its place in `pairs`, that runs on the host of this number.
struct OnHost {
    place: usize,
    host: usize,
    work: Work<'static>,
    since: Instant,
}

impl OnHost {
    fn running(&self) -> Running<'static> {
        Running { work: self.work, host: self.host }
    }
}

/// Runs one validation and tells the floor.
fn validate_on(
    pair: &Pair<'_>,
    (place, host, lender): (usize, usize, &LabHost),
    control: Control,
    tell: &Sender<Word>,
) {
    let mut told = |what| drop(tell.send(Word::Told(place, Box::new(what))));
    let result = pair.run(lender, control, &mut told);
    let result = result.with_context(|| format!("validation on {}", pair.baseline.full_name()));
    let word = match result {
        Ok(Came::Found(report)) => Word::Ended(place, host, Ok(report)),
        Ok(Came::HostGone(reason)) => Word::HostGone(place, host, reason),
        Ok(Came::Disagrees(reason)) => Word::Disagrees(place, reason),
        Err(error) => Word::Ended(place, host, Err(error)),
    };
    drop(tell.send(word));
}

fn subject<'a>(pair: &Pair<'a>) -> Subject<'a> {
    Subject { order: &pair.order.id, baseline: pair.name }
}

/// What of a worker's words is written down. How far an agent is, is for who watches.
fn happening(tell: &Tell) -> Option<Happening> {
    match tell {
        Tell::Phase(name) => Some(Happening::Phase { name: name.clone() }),
        Tell::Step { scenario, step, role, status } => {
            let (scenario, step) = (scenario.clone(), step.clone());
            Some(Happening::Step { scenario, step, role: *role, status: *status })
        }
        Tell::Note(text) | Tell::Evidence(text) => Some(Happening::Note { text: text.clone() }),
        Tell::Agent { .. } | Tell::Done { .. } | Tell::Failed(_) => None,
    }
}
