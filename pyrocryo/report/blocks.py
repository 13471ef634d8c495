"""Places on the page for its program to draw in; it fills the menus."""

from __future__ import annotations

__all__ = ["EXPLORER", "MOTION", "SOLID"]

EXPLORER = """<section id=explore class=live><h2>Particles in latent space</h2>
<div class=controls>
<label>seed <select id=seed></select></label>
<label>across <select id=across></select></label>
<label>up <select id=up></select></label>
<label>colour <select id=colour></select></label>
<span class=buttons><button type=button id=closer aria-label="zoom in">+</button>
<button type=button id=farther aria-label="zoom out">−</button>
<button type=button id=all>show all</button></span>
</div>
<div class=split>
<div class=plot><canvas id=scatter tabindex=0 role=img aria-label="Scatter plot of particles by the
two quantities chosen above; arrow keys go from particle to particle"></canvas>
<div id=tip role=tooltip hidden><canvas width=96 height=96></canvas><p></p></div>
<div id=legend class=legend></div></div>
<aside id=card aria-live=polite><p class=small>Point at a particle to see it; click to keep it
here. Drag to move, + and − (or Ctrl and the wheel) to zoom, arrow keys to step.</p></aside>
</div></section>"""

MOTION = """<section id=motion class=live><h2>What moves along each axis</h2>
<div class=controls>
<label>seed <select id=which></select></label>
<label>axis <select id=axis></select></label>
<label>picture <select id=shown><option value=density>density</option>
<option value=change>change from the middle</option></select></label>
<button type=button id=play aria-pressed=false>▶ play</button>
</div>
<label class=slider><span id=where></span>
<input type=range id=step min=0 max=6 step=0.02 value=3
aria-label="position along the axis"></label>
<div class="stage"><div class=pictures>
<figure><canvas id=picture width=432 height=432 role=img aria-label="Picture at this position along
the axis"></canvas><figcaption id=pictured></figcaption></figure>
<!--solid-->
</div>
<div id=strips></div></div>
<p class=small>From the 2nd to the 98th percentile of each latent, the others at their median.
Click a strip to go there.</p></section>"""

SOLID = """<figure id=space><canvas id=solid tabindex=0 role=img
aria-label="Three-dimensional view at this position; drag or use arrow keys to turn it"></canvas>
<div class=controls><label>show <select id=kind></select></label>
<label id=levels>contour <input type=range id=level min=5 max=90 step=1></label></div>
<figcaption id=solidly></figcaption></figure>"""
