"""Fig. 2(a): reference -> image features -> Q-Formers -> S* tokens and visual features per (t, l)."""

from customcontrast.encoder.attribution import token_sources
from customcontrast.encoder.mfi import MFIEncoder, MFIOutput

__all__ = ["MFIEncoder", "MFIOutput", "token_sources"]
