//! `patchlab host enroll`: the way without a network between host and server. A folder is written here, with the host's key in it, and
//! somebody carries it there. `host token` is the other way.

use std::{
    fs,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use clap::Args;
use patchlab_protocol::{
    Envelope, SigningKey,
    description::Tags,
    enrolment::{self, Enrolment, KEY_FILE, ROOT_FILE, Scripts},
};

use super::{CliError, Client};
use crate::{
    enrol::{HostTerms, Material, agent_toml},
    pipeline::{EnrolmentRequest, EnrolmentTerms},
    store::Host,
};

const EXAMPLES: &str = "Examples:
  patchlab host enroll web-1 --address 192.0.2.7:161 --site main --out web-1
  patchlab host enroll web-1 --address 192.0.2.7:161 --site main --out web-1 --allow-scripts --location hall-2 --function web

The host's key is made here, and the folder has to be carried to the host. Where the host reaches this server, patchlab host token is the
better way: its key never leaves it then.";

/// What is decided about a host.
#[derive(Debug, Args)]
pub struct TermsArguments {
    /// Where its agent answers SNMP, as this server reaches it
    #[arg(long, value_name = "IP:PORT")]
    address: SocketAddr,
    /// The site it is at
    #[arg(long)]
    site: String,
    /// This server's address as the host reaches it, for payloads, informs and enrolment; as bound unless given
    #[arg(long, value_name = "IP")]
    member: Option<IpAddr>,
    /// Where the agent itself listens; all addresses at the port of --address unless given
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Where the agent keeps its state on the host
    #[arg(long, value_name = "DIR", default_value = enrolment::DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
    /// Where the agent keeps what must not go back with a disk that is reverted to a snapshot; the state folder unless given
    #[arg(long, value_name = "DIR")]
    ledger_dir: Option<PathBuf>,
    /// Let orders change the host by scripts that they ship, and not by packages alone
    #[arg(long)]
    allow_scripts: bool,
    /// Where it stands, in the site's own words, at most 64 bytes: host show says it
    #[arg(long, value_name = "WORDS", default_value = "")]
    location: String,
    /// What it is for, as --location
    #[arg(long, value_name = "WORDS", default_value = "")]
    function: String,
}

impl From<TermsArguments> for HostTerms {
    fn from(given: TermsArguments) -> Self {
        Self {
            site: given.site,
            address: given.address,
            member: given.member,
            listen: given.listen,
            state_dir: given.state_dir,
            ledger_dir: given.ledger_dir,
            scripts: Scripts { allow: given.allow_scripts },
            tags: Tags { location: given.location, function: given.function },
        }
    }
}

/// A host to enrol.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Enroll {
    /// Its name: activations name it
    name: String,
    #[command(flatten)]
    terms: TermsArguments,
    /// Folder to write agent.toml, root.json and host.pem to (as /etc/patchlab-agent on the host); must not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl Enroll {
    pub(super) async fn run(self, client: &Client) -> Result<Host, CliError> {
        let server: EnrolmentTerms = client.get("enrolment").await?;
        if server.root.digest() != server.root_digest {
            return Err(CliError::Failed("the server's root document does not have the digest it says".into()));
        }
        let Self { name, terms, out } = self;
        let terms = HostTerms::from(terms);
        let material = Material::generate(&name).map_err(CliError::failed)?;
        let key = SigningKey::generate().map_err(CliError::failed)?;
        let agent = terms.enrolment(&name, &server, &material).map_err(CliError::input)?;
        let host = terms.host(&name, &server, &material, key.public()).map_err(CliError::input)?;
        // The folder first: a host that is enrolled here but whose key is nowhere would be of no use.
        write_folder(&out, &agent, &server.root, &key)?;
        let request = EnrolmentRequest { host, credentials: material.credentials };
        match client.post("hosts", &request).await {
            Ok(host) => Ok(host),
            Err(error) => {
                let _ = fs::remove_dir_all(&out);
                Err(error)
            }
        }
    }
}

/// Writes the agent's folder, mode 0700; it must not exist.
fn write_folder(out: &Path, agent: &Enrolment, root: &Envelope, key: &SigningKey) -> Result<(), CliError> {
    let failed =
        |path: &Path, error: std::io::Error| CliError::Input(format!("cannot write {}: {error}", path.display()));
    fs::DirBuilder::new().mode(0o700).create(out).map_err(|error| failed(out, error))?;
    let text = agent_toml(agent).map_err(CliError::failed)?;
    let write = |name: &str, bytes: &[u8]| {
        let path = out.join(name);
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
            .map_err(|error| failed(&path, error))
    };
    write(enrolment::FILE_NAME, text.as_bytes())?;
    write(ROOT_FILE, &root.to_bytes())?;
    key.write_new(&out.join(KEY_FILE)).map_err(CliError::failed)
}
