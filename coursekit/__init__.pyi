from . import autodiff as autodiff
from . import claims as claims
from . import course as course
from . import data as data
from . import distributions as distributions
from . import empirical as empirical
from . import flows as flows
from . import information as information
from . import landscape as landscape
from . import linalg as linalg
from . import neural_ode as neural_ode
from . import nn as nn
from . import ode as ode
from . import optim as optim
from . import plotting as plotting
from . import progress as progress
from . import random as random
from . import regression as regression
from . import shallow as shallow
from . import training as training
from . import transport as transport
from ._validation import ConvergenceWarning as ConvergenceWarning
from .claims import ClaimError as ClaimError
from .claims import claim as claim
from .plotting import savefig as savefig
from .plotting import show_source as show_source

__version__: str
