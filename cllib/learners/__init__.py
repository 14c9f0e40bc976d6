"""One file per method. `LEARNERS` are those for any network; those of chapter 1, many runs at once, are in `heads`.

A learner joins by one line in `LEARNERS`; `cllib.contract` then holds it to what every learner promises.
"""

from cllib.fingerprint import Registry
from cllib.learners.agem import AGEM
from cllib.learners.birt import BiRT
from cllib.learners.cwr import CWR
from cllib.learners.der import DER, DERPlus
from cllib.learners.er import ER
from cllib.learners.ewc import EWC
from cllib.learners.gdumb import GDumb
from cllib.learners.generative_replay import GenerativeReplay
from cllib.learners.joint import Joint
from cllib.learners.latent_replay import LatentReplay
from cllib.learners.lwf import LwF
from cllib.learners.mir import MIR
from cllib.learners.naive import Naive
from cllib.learners.si import SI

LEARNERS: dict[str, type[Naive]] = Registry(
    {
        "naive": Naive,
        "joint": Joint,
        "er": ER,
        "der": DER,
        "der++": DERPlus,
        "agem": AGEM,
        "mir": MIR,
        "gdumb": GDumb,
        "ewc": EWC,
        "si": SI,
        "lwf": LwF,
        "cwr*": CWR,
        "latent": LatentReplay,
        "generative": GenerativeReplay,
        "birt": BiRT,
    }
)
