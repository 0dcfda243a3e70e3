"""One short file per published system: it reproduces the paper's headline claims at CPU scale and says which held."""

from rote.studies.protocol import Claim, Study, StudyContext, load_study, run_study, study_slugs

__all__ = ["Claim", "Study", "StudyContext", "load_study", "run_study", "study_slugs"]
