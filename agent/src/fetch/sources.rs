//! From where a host fetches: places near it first, then the one that an order's row names.
//!
//! A near place can only save time. Whatever it does wrong (it is away, lacks something, falls silent, breaks off, sends other bytes) is
//! logged, the next is asked, and bytes that came already are kept and gone on from, until the whole shows that they were altered.

use std::{
    collections::BTreeSet,
    fs,
    ops::Deref,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use patchlab_protocol::{Digest, Envelope, enrolment::Fetching, limits};
use reqwest::{Client, Response, StatusCode, header::RANGE, redirect};

use super::{
    FetchError, Payload, Place, file_name, is_what_its_name_says, kept_document,
    limit::Limit,
    pace::Pace,
    partial::{Partial, part_of},
};
use crate::journal::replace;

/// How long the place that a row names may say nothing.
const SILENCE: Duration = Duration::from_secs(20);
/// How long a place near the host may say nothing: another has it as well.
const NEAR_SILENCE: Duration = Duration::from_secs(5);
/// How often the place that a row names is asked for the rest of a file after its transfer broke.
const ATTEMPTS: u32 = 4;

/// How this host fetches; shared by everything that does.
#[derive(Debug)]
pub struct Downloads {
    near: Vec<Place>,
    limit: Option<Arc<Limit>>,
    /// Where files grow, on the file system of the folders that they go to.
    parts: PathBuf,
}

impl Downloads {
    /// As the configuration says; parts of files are kept in `parts`, which is made.
    ///
    /// # Errors
    /// When a source is none to fetch from.
    pub fn new(fetching: &Fetching, parts: PathBuf) -> Result<Self, FetchError> {
        let near = fetching.sources.iter().map(|uri| Place::new(uri)).collect::<Result<_, _>>()?;
        Ok(Self { near, limit: fetching.rate.map(|rate| Arc::new(Limit::new(rate))), parts })
    }

    /// The sources of one run, whose row names `uri`.
    ///
    /// # Errors
    /// When that is none to fetch from.
    pub fn sources(&self, uri: &str) -> Result<Sources, FetchError> {
        let far = Place::new(uri)?;
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .connect_timeout(SILENCE)
            .build()
            .map_err(|source| FetchError::Transfer { url: uri.to_owned(), source })?;
        let near = self.near.iter().filter(|place| **place != far).cloned().collect();
        let (given_up, parts) = (BTreeSet::new(), self.parts.clone());
        Ok(Sources { client, near, far, given_up, limit: self.limit.clone(), parts })
    }

    /// Bytes of a file that an earlier run left: they are not fetched again.
    pub fn have(&self, file: &Payload) -> u64 {
        fs::metadata(part_of(&self.parts, file)).map_or(0, |part| part.len().min(file.size))
    }

    /// What is said against fetching `bytes` in `time`; `None` when the rate allows it.
    pub fn too_slow_for(&self, bytes: u64, time: Duration) -> Option<String> {
        let rate = self.limit.as_ref()?.rate();
        let needs = rate.time_for(bytes);
        (needs > time).then(|| {
            let [needs, time] = [needs, time].map(|time| time.as_secs());
            format!(
                "{bytes} bytes take {needs} s at {rate}, and the run has {time} s left: raise rate under [fetch] in \
                 agent.toml, or prefetch the order, with a longer lifetime"
            )
        })
    }
}

/// Whether what came cannot be what its digest names, whoever sent the rest of it.
fn is_other_content(error: &FetchError) -> bool {
    matches!(error, FetchError::Altered { .. } | FetchError::TooLarge { .. })
}

/// Where one run fetches from.
#[derive(Debug)]
pub struct Sources {
    client: Client,
    near: Vec<Place>,
    far: Place,
    /// Those near that are not asked again: they could not be reached, fell silent, dripped, or sent altered bytes.
    given_up: BTreeSet<Place>,
    limit: Option<Arc<Limit>>,
    parts: PathBuf,
}

impl Sources {
    /// A document, whose payload has this digest. The digest says nothing of its signatures: one from a near place counts only when
    /// `is_signed` says so, or a place that drops or alters them could have the run refused. Of the last one, the caller judges.
    ///
    /// # Errors
    /// When it cannot be had, is larger than [`limits::DOCUMENT_BYTES`], or is another one.
    pub async fn document(
        &mut self,
        digest: &Digest,
        is_signed: &(dyn Fn(&Envelope) -> bool + Sync),
    ) -> Result<Envelope, FetchError> {
        for place in self.near_in_order() {
            let error = match self.document_of(&place, digest).await {
                Ok(envelope) if is_signed(&envelope) => return Ok(envelope),
                Ok(_) => {
                    let reason = "not enough keys that count here signed it".to_owned();
                    FetchError::Altered { url: place.document(digest), reason }
                }
                Err(error) => error,
            };
            self.pass_over(&place, &error);
        }
        let found = self.document_of(&self.far, digest).await;
        found.map_err(|error| self.everywhere(error))
    }

    /// As [`Self::document`]; it is kept in `folder`, and taken from there when it is there.
    ///
    /// # Errors
    /// As [`Self::document`], and when it cannot be kept.
    pub async fn document_into(
        &mut self,
        folder: &Path,
        digest: &Digest,
        is_signed: &(dyn Fn(&Envelope) -> bool + Sync),
    ) -> Result<Envelope, FetchError> {
        let path = folder.join(format!("{digest}.json"));
        if let Some(kept) = kept_document(&path, digest) {
            return Ok(kept);
        }
        let envelope = self.document(digest, is_signed).await?;
        replace(&path, &envelope.to_bytes()).map_err(|source| FetchError::Disk { path, source })?;
        Ok(envelope)
    }

    /// A file into `folder`, under a name of its own; says where. A broken transfer goes on where it broke, from
    /// whoever is next, also in a later run; a file that is there already, whole, is not fetched again.
    ///
    /// # Errors
    /// When it cannot be had, or has another size or digest than `file` says.
    pub async fn payload(
        &mut self,
        file: Payload,
        folder: &Path,
        mut progress: impl FnMut(u64) + Send,
    ) -> Result<PathBuf, FetchError> {
        if file.size > limits::PAYLOAD_BYTES {
            let url = self.far.artifact(&file.sha256);
            return Err(FetchError::TooLarge { url, limit: limits::PAYLOAD_BYTES });
        }
        let path = folder.join(file_name(&file.sha256));
        if is_what_its_name_says(&path) {
            progress(file.size);
            return Ok(path);
        }
        let mut part = Partial::new(file, folder, &self.parts)?;
        for place in self.near_in_order() {
            match self.complete(&place, &file.sha256, &mut part, &mut progress).await {
                Ok(()) => return part.keep(),
                Err(error @ FetchError::Disk { .. }) => return Err(error),
                Err(error) => {
                    if is_other_content(&error) {
                        part.start_over()?;
                    }
                    self.pass_over(&place, &error);
                }
            }
        }
        let far = self.far.clone();
        let done = self.complete(&far, &file.sha256, &mut part, &mut progress).await;
        done.map_err(|error| self.everywhere(error))?;
        part.keep()
    }

    /// The near places that are still asked.
    fn near_in_order(&self) -> Vec<Place> {
        self.near.iter().filter(|place| !self.given_up.contains(place)).cloned().collect()
    }

    /// Another is asked instead of this one, perhaps for the rest of the run.
    fn pass_over(&mut self, place: &Place, error: &FetchError) {
        let is_hopeless = match error {
            FetchError::Transfer { source, .. } => source.is_connect(),
            FetchError::Silent { .. } | FetchError::Slow { .. } => true,
            _ => is_other_content(error),
        };
        if is_hopeless {
            tracing::warn!(source = %place, reason = %error, "a near source is not asked again in this run");
            self.given_up.insert(place.clone());
        } else {
            tracing::warn!(source = %place, reason = %error, "a near source is passed over");
        }
    }

    /// The error when the last has failed too. What is wrong with this host's own disk is nobody else's failure.
    fn everywhere(&self, error: FetchError) -> FetchError {
        match self.near.len() {
            0 => error,
            _ if matches!(error, FetchError::Disk { .. }) => error,
            others => FetchError::Everywhere { last: Box::new(error), others },
        }
    }

    async fn document_of(&self, place: &Place, digest: &Digest) -> Result<Envelope, FetchError> {
        let url = place.document(digest);
        let mut answer = self.get(place, &url, 0).await?;
        let (mut bytes, mut pace) = (Vec::new(), Pace::default());
        while let Some(part) = self.next(place, &url, &mut answer, &mut pace).await? {
            bytes.extend_from_slice(&part);
            if bytes.len() as u64 > limits::DOCUMENT_BYTES {
                return Err(FetchError::TooLarge { url, limit: limits::DOCUMENT_BYTES });
            }
        }
        let altered = |reason| FetchError::Altered { url: url.clone(), reason };
        let envelope = Envelope::from_bytes(&bytes).map_err(|error| altered(error.to_string()))?;
        let found = envelope.digest();
        if found != *digest {
            return Err(altered(format!("its digest is {}", found.short())));
        }
        Ok(envelope)
    }

    /// Has `place` send what is missing of a file. When the whole is altered and others have a part in it, `place` is asked
    /// for all of it, once.
    async fn complete(
        &mut self,
        place: &Place,
        digest: &Digest,
        part: &mut Partial,
        progress: &mut (impl FnMut(u64) + Send),
    ) -> Result<(), FetchError> {
        let url = place.artifact(digest);
        loop {
            self.rest(place, &url, part, progress).await?;
            match part.wrong() {
                None => break,
                Some(reason) if part.is_mixed(place) => {
                    tracing::warn!(%url, reason, "what came from several sources is altered: starting over");
                    part.start_over_without_suspects()?;
                }
                Some(reason) => return Err(FetchError::Altered { url, reason }),
            }
        }
        for liar in part.convicted() {
            tracing::warn!(source = %liar, "a near source sent altered bytes: it is not asked again in this run");
            self.given_up.insert(liar);
        }
        Ok(())
    }

    /// Asks for what is missing, more than once only where nobody is left to be asked instead.
    async fn rest(
        &self,
        place: &Place,
        url: &str,
        part: &mut Partial,
        progress: &mut (impl FnMut(u64) + Send),
    ) -> Result<(), FetchError> {
        let attempts = if *place == self.far { ATTEMPTS } else { 1 };
        for attempt in 1.. {
            if part.have() == part.size() {
                break;
            }
            match self.transfer(place, url, part, progress).await {
                Err(error @ (FetchError::Transfer { .. } | FetchError::Silent { .. })) if attempt < attempts => {
                    tracing::info!(have = part.have(), %error, "the transfer broke, going on from there");
                }
                other => return other,
            }
        }
        Ok(())
    }

    /// Takes whatever comes from the first missing byte on.
    async fn transfer(
        &self,
        place: &Place,
        url: &str,
        part: &mut Partial,
        progress: &mut (impl FnMut(u64) + Send),
    ) -> Result<(), FetchError> {
        let mut answer = self.get(place, url, part.have()).await?;
        // A server that knows no ranges sends all of it again: what is there already is skipped.
        let mut skip = if answer.status() == StatusCode::PARTIAL_CONTENT { 0 } else { part.have() };
        let mut pace = Pace::default();
        while let Some(bytes) = self.next(place, url, &mut answer, &mut pace).await? {
            let known = skip.min(bytes.len() as u64);
            skip -= known;
            let new = &bytes[usize::try_from(known).unwrap_or(bytes.len())..];
            if part.have() + new.len() as u64 > part.size() {
                return Err(FetchError::TooLarge { url: url.to_owned(), limit: part.size() });
            }
            part.take(new, place)?;
            progress(part.have());
        }
        Ok(())
    }

    async fn get(&self, place: &Place, url: &str, from: u64) -> Result<Response, FetchError> {
        let mut request = self.client.get(url);
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let answer = self.heard(place, url, request.send()).await?;
        match answer.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(answer),
            status => Err(FetchError::Status { url: url.to_owned(), status }),
        }
    }

    /// The next bytes of an answer, and then the time that they cost. A near place that drips is left; from the last one, whatever
    /// comes is better than nothing.
    async fn next(
        &self,
        place: &Place,
        url: &str,
        answer: &mut Response,
        pace: &mut Pace,
    ) -> Result<Option<impl Deref<Target = [u8]> + Send + use<>>, FetchError> {
        let asked = Instant::now();
        let bytes = self.heard(place, url, answer.chunk()).await?;
        pace.enter(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64), asked.elapsed());
        if *place != self.far && bytes.is_some() && pace.is_crawling() {
            return Err(FetchError::Slow { url: url.to_owned(), bytes: pace.bytes, seconds: pace.waited.as_secs() });
        }
        if let (Some(limit), Some(bytes)) = (&self.limit, &bytes) {
            limit.pass(bytes.len() as u64).await;
        }
        Ok(bytes)
    }

    /// What a server says, unless it says nothing. Only its silence counts: the client's own timeout would go on while the limit
    /// keeps us from reading.
    async fn heard<T>(
        &self,
        place: &Place,
        url: &str,
        said: impl Future<Output = reqwest::Result<T>>,
    ) -> Result<T, FetchError> {
        let silence = if *place == self.far { SILENCE } else { NEAR_SILENCE };
        match tokio::time::timeout(silence, said).await {
            Ok(said) => said.map_err(|source| FetchError::Transfer { url: url.to_owned(), source }),
            Err(_) => Err(FetchError::Silent { url: url.to_owned(), seconds: silence.as_secs() }),
        }
    }
}
