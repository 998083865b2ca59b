//! Rank and size of the group, from the environment variables of a launcher.

use super::{ParallelError, SECRET_VARIABLE, Secret};

/// More processes than anybody starts: a number above it is a mistake.
const MOST_PROCESSES: usize = 4096;

/// Port of the first process where the launcher names none.
const PORT: u16 = 29_500;

/// This process among those that were launched together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Number of this process, from 0.
    pub rank: usize,
    /// Number of processes.
    pub world: usize,
    /// Number among the processes of this machine: which GPU to take.
    pub local_rank: usize,
    /// Processes on this machine: how to share its cores.
    pub local_world: usize,
    /// Where rank 0 listens.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What keeps strangers out of the group: `SQUAT_SECRET`.
    pub secret: Secret,
    /// Whether MPI started this process and carries the bytes.
    pub mpi: bool,
}

/// A launcher's names for the same things.
struct Names {
    launcher: &'static str,
    rank: &'static str,
    world: &'static [&'static str],
    local_rank: &'static str,
    local_world: &'static [&'static str],
}

const LAUNCHERS: [Names; 4] = [
    Names {
        launcher: "RANK and WORLD_SIZE",
        rank: "RANK",
        world: &["WORLD_SIZE"],
        local_rank: "LOCAL_RANK",
        local_world: &["LOCAL_WORLD_SIZE"],
    },
    Names {
        launcher: "Open MPI",
        rank: "OMPI_COMM_WORLD_RANK",
        world: &["OMPI_COMM_WORLD_SIZE"],
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_world: &["OMPI_COMM_WORLD_LOCAL_SIZE"],
    },
    Names {
        launcher: "Slurm",
        rank: "SLURM_PROCID",
        world: &["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"],
        local_rank: "SLURM_LOCALID",
        local_world: &["SLURM_NTASKS_PER_NODE"],
    },
    // Those of MPICH and its relatives.
    Names {
        launcher: "MPI",
        rank: "PMI_RANK",
        world: &["PMI_SIZE"],
        local_rank: "MPI_LOCALRANKID",
        local_world: &["MPI_LOCALNRANKS"],
    },
];

impl Launch {
    /// From the environment of this process; `None` if it was started alone.
    ///
    /// # Errors
    /// Variables that are not numbers, are missing or contradict each other.
    pub fn from_environment() -> Result<Option<Self>, ParallelError> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// The same from any source of variables. In order: torchrun's `RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`;
    /// Open MPI's `OMPI_COMM_WORLD_*`; `srun`'s `SLURM_*`; `PMI_*` of other MPIs. A group of one counts as none.
    ///
    /// # Errors
    /// Variables that are not numbers, are missing or contradict each other.
    pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, ParallelError> {
        let get = |name: &str| get(name).filter(|value| !value.is_empty());
        let master = get("MASTER_ADDR");
        let Some(names) = LAUNCHERS.iter().find(|names| {
            // A batch script has SLURM_PROCID too; only what srun starts is one of many.
            let srun = names.launcher != "Slurm" || get("SLURM_STEP_NODELIST").is_some() || master.is_some();
            srun && get(names.rank).is_some() && names.world.iter().any(|name| get(name).is_some())
        }) else {
            return match (get("RANK"), get("WORLD_SIZE")) {
                (None, None) => Ok(None),
                _ => Err(ParallelError::Launch {
                    launcher: "RANK and WORLD_SIZE",
                    problem: "only one of the two is set; set both, or neither to train in one process"
                        .into(),
                }),
            };
        };
        let fail = |problem: String| ParallelError::Launch { launcher: names.launcher, problem };
        let number = |name: &str, value: String| -> Result<usize, ParallelError> {
            value.parse().map_err(|_| fail(format!("{name} is `{value}`, expected a number")))
        };
        let first = |list: &[&str]| -> Result<Option<usize>, ParallelError> {
            let found = list.iter().find_map(|name| get(name).map(|value| (*name, value)));
            found.map(|(name, value)| number(name, value)).transpose()
        };
        let rank = first(&[names.rank])?.unwrap_or(0);
        let world = first(names.world)?.unwrap_or(1);
        if rank >= world {
            return Err(fail(format!("{} is {rank}, expected a number below {world}", names.rank)));
        }
        if world > MOST_PROCESSES {
            return Err(fail(format!("{world} processes, expected at most {MOST_PROCESSES}")));
        }
        if world == 1 {
            return Ok(None);
        }
        let local_rank = first(&[names.local_rank])?.unwrap_or(0);
        let local_world = first(names.local_world)?.unwrap_or(1).max(1);
        let here = names.launcher == "Open MPI" && local_world == world;
        // Only a program with MPI inside can use it; another one connects by TCP.
        let started_by_mpi = match names.launcher {
            "Open MPI" | "MPI" => true,
            "Slurm" => get("PMIX_RANK").is_some() || get("PMI_RANK").is_some(),
            _ => false,
        };
        let mpi = cfg!(feature = "mpi") && started_by_mpi;
        let nodes = || get("SLURM_STEP_NODELIST").filter(|_| names.launcher == "Slurm");
        let host = master
            .or_else(|| nodes().map(|list| first_host(&list)))
            .or_else(|| (here || mpi).then(|| "127.0.0.1".to_owned()))
            .ok_or_else(|| fail("MASTER_ADDR is not set; give it the machine of rank 0".into()))?;
        let mut port = match get("MASTER_PORT") {
            Some(value) => value
                .parse()
                .map_err(|_| fail(format!("MASTER_PORT is `{value}`, expected a port, such as {PORT}")))?,
            None => PORT,
        };
        if get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            // torchrun itself listens at MASTER_PORT.
            port = port.checked_add(1).unwrap_or(PORT);
        }
        let secret = Secret::new(get(SECRET_VARIABLE))?;
        Ok(Some(Self { rank, world, local_rank, local_world, host, port, secret, mpi }))
    }
}

/// The first host of a Slurm list such as `gpu[01-04,07],login`.
fn first_host(list: &str) -> String {
    let mut host = String::new();
    let mut rest = list.chars();
    while let Some(c) = rest.next() {
        match c {
            ',' => break,
            '[' => {
                let inside: String = rest.by_ref().take_while(|&c| c != ']').collect();
                host.extend(inside.chars().take_while(|c| !matches!(c, '-' | ',')));
            }
            c => host.push(c),
        }
    }
    host
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(variables: &[(&str, &str)]) -> Result<Option<Launch>, ParallelError> {
        Launch::from_variables(|name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
        })
    }

    #[test]
    fn torchrun() {
        let mut variables = vec![
            ("RANK", "3"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("MASTER_ADDR", "node7"),
            ("MASTER_PORT", "1234"),
            // Inside a Slurm job as well: torchrun counts.
            ("SLURM_PROCID", "0"),
            ("SLURM_NTASKS", "2"),
        ];
        let found = launch(&variables).unwrap().unwrap();
        let expected = Launch {
            rank: 3,
            world: 4,
            local_rank: 1,
            local_world: 2,
            host: "node7".into(),
            port: 1234,
            secret: Secret::default(),
            mpi: false,
        };
        assert_eq!(found, expected);
        variables.push(("TORCHELASTIC_USE_AGENT_STORE", "True"));
        assert_eq!(launch(&variables).unwrap().unwrap().port, 1235);
    }

    #[test]
    fn slurm_and_open_mpi() {
        let batch = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")];
        assert_eq!(launch(&batch).unwrap(), None, "a batch script is one process");
        let step = [
            ("SLURM_PROCID", "5"),
            ("SLURM_NTASKS", "9"),
            ("SLURM_STEP_NUM_TASKS", "8"),
            ("SLURM_STEP_NODELIST", "cpu[03-06,11],big1"),
            ("SLURM_LOCALID", "1"),
        ];
        let found = launch(&step).unwrap().unwrap();
        assert_eq!((found.rank, found.world, found.local_rank), (5, 8, 1));
        assert_eq!((found.host.as_str(), found.port), ("cpu03", PORT));
        let mpi = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        assert_eq!(launch(&mpi).unwrap().unwrap().host, "127.0.0.1");
        let far = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")];
        if cfg!(feature = "mpi") {
            assert!(launch(&far).unwrap().unwrap().mpi);
        } else {
            assert!(launch(&far).unwrap_err().to_string().contains("MASTER_ADDR"));
        }
        for (list, host) in [("a,b", "a"), ("n[1,5]", "n1"), ("r[2-3]n[08-09]x", "r2n08x"), ("solo", "solo")]
        {
            assert_eq!(first_host(list), host);
        }
    }

    #[test]
    fn alone_or_wrong() {
        assert_eq!(launch(&[]).unwrap(), None);
        assert_eq!(launch(&[("RANK", "0"), ("WORLD_SIZE", "1")]).unwrap(), None);
        let address = ("MASTER_ADDR", "127.0.0.1");
        for (variables, word) in [
            (&[("RANK", "2"), ("WORLD_SIZE", "2"), address][..], "below 2"),
            (&[("RANK", "x"), ("WORLD_SIZE", "2"), address], "`x`"),
            (&[("RANK", "0"), ("WORLD_SIZE", "1000000000"), address], "at most 4096"),
            (&[("RANK", "0"), ("WORLD_SIZE", "2"), address, (SECRET_VARIABLE, "guess me")], "openssl"),
            (&[("RANK", "0")], "only one"),
            (&[("RANK", "0"), ("WORLD_SIZE", "2")], "MASTER_ADDR"),
            (&[("RANK", "0"), ("WORLD_SIZE", "2"), address, ("MASTER_PORT", "99999")], "MASTER_PORT"),
        ] {
            let error = launch(variables).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
