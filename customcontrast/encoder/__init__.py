"""Fig. 2(a): picture -> image features -> Q-Formers -> S* tokens and visual features per (t, l)."""

from customcontrast.encoder.mfi import MFIEncoder, MFIOutput
from customcontrast.encoder.sources import token_sources

__all__ = ["MFIEncoder", "MFIOutput", "token_sources"]
